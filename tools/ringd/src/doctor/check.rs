//! [`Check`]: one check, its result and what to do.

use serde::Serialize;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, but not as well as it could.
    Advice,
    /// Zones cannot be run.
    Wrong,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// The result.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Check {
    pub(super) fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Good,
            found: found.into(),
            advice: None,
        }
    }

    fn bad(
        name: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    pub(super) fn wrong(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(name, Verdict::Wrong, found, advice)
    }

    pub(super) fn advice(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(name, Verdict::Advice, found, advice)
    }
}

/// Returns the checks as text.
pub fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Good => "ok",
            Verdict::Advice => "note",
            Verdict::Wrong => "WRONG",
        };
        text.push_str(&format!("{verdict:<6} {:<16} {}\n", check.name, check.found));
        if let Some(advice) = &check.advice {
            text.push_str(&format!("       {:<16} -> {advice}\n", ""));
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (wrong, notes) = (count(Verdict::Wrong), count(Verdict::Advice));
    text.push_str(&match wrong {
        0 => format!("zones can be run; {notes} notes\n"),
        _ => format!("zones cannot be run: {wrong} things are wrong\n"),
    });
    text
}
