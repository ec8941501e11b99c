# Commands for `make gdb`; read after the symbols are loaded and the machine is attached to.

set language rust
set max-value-size unlimited
source tools/gdb/ringvisor.py

define el2-where
    info registers pc cpsr ELR_EL2 ESR_EL2 FAR_EL2 HPFAR_EL2
end
document el2-where
Prints the exception level and the registers of the last trap into EL2.
end
