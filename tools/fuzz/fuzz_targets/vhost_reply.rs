#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| sim::fuzz::vhost_reply(data));
