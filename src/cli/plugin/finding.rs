//! What an examination found: each thing looked at, how it is, and what to do where it is not right.

use serde_json::Value;
use serde_json::json;

use crate::cli::plugin::table::Tone;
use crate::cli::terminal::Palette;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it should be.
    Fine,
    /// As it may be, and good to know.
    Note,
    /// It could not be looked at.
    Unchecked,
    /// Not as it should be.
    Problem,
}

impl Verdict {
    /// The name in the report and in `-o json`.
    const fn name(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Unchecked => "unchecked",
            Self::Problem => "PROBLEM",
        }
    }

    const fn tone(self) -> Tone {
        match self {
            Self::Fine => Tone::Good,
            Self::Note => Tone::Plain,
            Self::Unchecked => Tone::Notice,
            Self::Problem => Tone::Bad,
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What it belongs to: `webhook`, `agents`, ...
    pub(crate) area: &'static str,
    /// How it is.
    pub(crate) verdict: Verdict,
    /// What was seen.
    pub(crate) seen: String,
    /// What to do; every problem has it.
    pub(crate) fix: Option<String>,
}

impl Finding {
    /// Something is as it should be.
    pub(crate) fn fine(area: &'static str, seen: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Fine, seen: seen.into(), fix: None }
    }

    /// Something is good to know.
    pub(crate) fn note(area: &'static str, seen: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Note, seen: seen.into(), fix: None }
    }

    /// With what could be done.
    pub(crate) fn advising(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }

    /// Something could not be looked at, and what would make it possible.
    pub(crate) fn unchecked(area: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Unchecked, seen: seen.into(), fix: Some(fix.into()) }
    }

    /// Something is wrong, and how to mend it.
    pub(crate) fn problem(area: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Problem, seen: seen.into(), fix: Some(fix.into()) }
    }
}

/// How many problems there are.
pub(crate) fn problems(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.verdict == Verdict::Problem).count()
}

/// Below what was seen.
const FIX_INDENT: &str = "             ";

/// The report for people.
pub(crate) fn text(findings: &[Finding], palette: Palette) -> String {
    let mut text = String::new();
    let mut area = "";
    for finding in findings {
        if finding.area != area {
            area = finding.area;
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&palette.bold(area));
            text.push('\n');
        }
        let verdict = finding.verdict.tone().paint(palette, &format!("{:<9}", finding.verdict.name()));
        text.extend(["  ", &verdict, "  ", &finding.seen, "\n"]);
        if let Some(fix) = &finding.fix {
            text.extend([FIX_INDENT, "-> ", fix, "\n"]);
        }
    }
    text.push('\n');
    text.push_str(&summary(findings, palette));
    text
}

fn summary(findings: &[Finding], palette: Palette) -> String {
    let unchecked = findings.iter().filter(|finding| finding.verdict == Verdict::Unchecked).count();
    let things = |count: usize| if count == 1 { "1 thing".to_owned() } else { format!("{count} things") };
    let unchecked = match unchecked {
        0 => String::new(),
        count => format!("; {} could not be checked", things(count)),
    };
    match problems(findings) {
        0 => format!("{}{unchecked}\n", palette.good("No problem found")),
        1 => format!("{}{unchecked}\n", palette.bad("1 problem found")),
        count => format!("{}{unchecked}\n", palette.bad(&format!("{count} problems found"))),
    }
}

/// The report for programs.
pub(crate) fn json(findings: &[Finding]) -> Value {
    let one = |finding: &Finding| {
        json!({
            "area": finding.area,
            "verdict": finding.verdict.name().to_lowercase(),
            "seen": finding.seen,
            "fix": finding.fix,
        })
    };
    json!({
        "findings": findings.iter().map(one).collect::<Vec<_>>(),
        "problems": problems(findings),
    })
}
