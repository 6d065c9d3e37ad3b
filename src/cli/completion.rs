//! Completion of the command line, from the command line's own description: for shells, and for `kubectl pinhole`.
//!
//! A shell's script asks the program for each word, so that what is offered is always what this version takes. kubectl
//! asks its plugin's helper, `kubectl_complete-pinhole`, in the way of its own completions.

use std::process::ExitCode;

use clap::Arg;
use clap::ArgAction;
use clap::Args;
use clap::Command;
use clap::CommandFactory;
use clap::ValueEnum;

use crate::cli::Cli;
use crate::cli::terminal;

/// Tells kubectl not to offer files.
const NO_FILES: &str = ":4";

const BASH: &str = r#"# Put this into ~/.bashrc: source <(pinhole completion bash)
_pinhole() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("${line%%$'\t'*}")
    done < <("${COMP_WORDS[0]}" complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _pinhole pinhole
"#;

const ZSH: &str = r#"#compdef pinhole
# Put this into ~/.zshrc: source <(pinhole completion zsh)
_pinhole() {
    local -a found
    local line
    while IFS= read -r line; do
        found+=("${line%%$'\t'*}:${line#*$'\t'}")
    done < <("${words[1]}" complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ${#found} )); then _describe pinhole found; else _files; fi
}
compdef _pinhole pinhole
"#;

const FISH: &str = r#"# Put this into ~/.config/fish/completions/pinhole.fish: pinhole completion fish
function __pinhole_complete
    # Quoted, so that an empty word is passed on, too.
    set -l word (commandline -ct)
    pinhole complete -- (commandline -opc)[2..-1] "$word" 2>/dev/null
end
complete -c pinhole -a '(__pinhole_complete)'
"#;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The arguments of `pinhole completion`.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell.
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl Completion {
    /// Prints the shell's script.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { shell } = self;
        terminal::print(match shell {
            Shell::Bash => BASH,
            Shell::Zsh => ZSH,
            Shell::Fish => FISH,
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The words of a command line that is being written; the last one is not finished.
#[derive(Debug, Args)]
pub(crate) struct Words {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WORD")]
    words: Vec<String>,
}

impl Words {
    /// Prints what could stand in the last word's place, for a shell.
    pub(crate) fn for_shell(self) -> anyhow::Result<ExitCode> {
        terminal::print(&lines(&described(), &self.words))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Likewise for kubectl, which has the words after `kubectl pinhole`.
    pub(crate) fn for_kubectl(self) -> anyhow::Result<ExitCode> {
        let words: Vec<_> = std::iter::once("kubectl".to_owned()).chain(self.words).collect();
        terminal::print(&format!("{}{NO_FILES}\n", lines(&described(), &words)))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn described() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn lines(command: &Command, words: &[String]) -> String {
    let line = |(word, help): (String, String)| format!("{word}\t{help}\n");
    candidates(command, words).into_iter().map(line).collect()
}

/// What could stand in the place of the last word, with a line of help each.
fn candidates(command: &Command, words: &[String]) -> Vec<(String, String)> {
    // bash takes `--output=json` apart at the equals sign.
    let words: Vec<&str> = words.iter().map(String::as_str).filter(|word| *word != "=").collect();
    let (last, before) = words.split_last().map_or(("", [].as_slice()), |(last, before)| (*last, before));
    let (command, pending) = place(command, before);
    let mut found = match (pending, last.split_once('=')) {
        (Some(argument), _) => values(argument, ""),
        (None, Some((flag, _))) => {
            let argument = flag_named(command, flag);
            argument.map(|argument| values(argument, &format!("{flag}="))).unwrap_or_default()
        }
        (None, None) if last.starts_with('-') => flags(command),
        (None, None) => {
            let positional = command.get_positionals().flat_map(|argument| values(argument, ""));
            subcommands(command).into_iter().chain(positional).collect()
        }
    };
    found.retain(|(word, _)| word.starts_with(last));
    found
}

/// The command that is being written, and the flag that waits for its value.
fn place<'a>(mut command: &'a Command, words: &[&str]) -> (&'a Command, Option<&'a Arg>) {
    let mut pending = None;
    for word in words {
        if pending.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            let argument = flag_named(command, word);
            pending = argument.filter(|argument| takes_value(argument));
        } else if let Some(next) = command.find_subcommand(word) {
            command = next;
        }
    }
    (command, pending)
}

fn takes_value(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Set | ArgAction::Append)
}

fn flag_named<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| {
        let is_long = argument.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long));
        let is_short =
            argument.get_short().is_some_and(|short| word.strip_prefix('-') == Some(&short.to_string()));
        is_long || is_short
    })
}

fn values(argument: &Arg, prefix: &str) -> Vec<(String, String)> {
    let possible = argument.get_possible_values();
    let value = |value: &clap::builder::PossibleValue| {
        let help = value.get_help().map(ToString::to_string).unwrap_or_default();
        (format!("{prefix}{}", value.get_name()), first_sentence(&help))
    };
    possible.iter().filter(|value| !value.is_hide_set()).map(value).collect()
}

fn flags(command: &Command) -> Vec<(String, String)> {
    let shown = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let flag = |argument: &Arg| {
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        Some((format!("--{}", argument.get_long()?), first_sentence(&help)))
    };
    shown.filter_map(flag).collect()
}

fn subcommands(command: &Command) -> Vec<(String, String)> {
    let shown = command.get_subcommands().filter(|found| !found.is_hide_set());
    let subcommand = |found: &Command| {
        let help = found.get_about().map(ToString::to_string).unwrap_or_default();
        (found.get_name().to_owned(), first_sentence(&help))
    };
    shown.map(subcommand).collect()
}

fn first_sentence(help: &str) -> String {
    let line = help.split('\n').next().unwrap_or_default();
    line.split_once(". ").map_or(line, |(first, _)| first).trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(words: &[&str]) -> Vec<String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        candidates(&described(), &words).into_iter().map(|(word, _)| word).collect()
    }

    #[test]
    fn commands_flags_and_values_are_offered_where_they_can_stand() {
        assert_eq!(offered(&["kube"]), ["kubectl"]);
        assert!(!offered(&[""]).contains(&"node-report".to_owned()), "what is hidden stays hidden");
        assert_eq!(offered(&["kubectl", "l"]), ["list"]);
        assert_eq!(offered(&["kubectl", "doctor", "--pre"]), ["--preflight"]);
        let outputs = ["table", "wide", "json", "yaml"];
        assert_eq!(offered(&["kubectl", "list", "-o", ""]), outputs);
        assert_eq!(offered(&["kubectl", "list", "--output", "=", ""]), outputs);
        assert_eq!(offered(&["kubectl", "list", "-n", "mail", "--output=j"]), ["--output=json"]);
        assert_eq!(offered(&["completion", ""])[..3], ["bash", "zsh", "fish"]);
        assert!(offered(&["kubectl", "list", "-n", ""]).is_empty(), "namespaces are not known here");
    }

    #[test]
    fn every_candidate_comes_with_its_help() {
        let words = ["kubectl".to_owned(), String::new()];
        let listed = lines(&described(), &words);
        assert!(listed.contains("list\tList external ports"), "{listed}");
    }
}
