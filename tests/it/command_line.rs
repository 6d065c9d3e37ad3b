//! The command line as a whole: usage errors, exit codes, help.

use std::path::Path;
use std::process::Command;

use crate::program::Program;

#[test]
fn a_bad_value_in_the_environment_names_the_flag_and_is_a_usage_error() {
    let output = Program::new(&["schema"]).env("PINHOLE_LOG_FORMAT", "xml").run();
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("--log-format"), "{}", output.stderr);
}

#[test]
fn a_command_that_does_not_exist_is_a_usage_error_with_a_suggestion() {
    let output = Program::new(&["shema"]).input("ignored").run();
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("'schema'"), "{}", output.stderr);
}

/// Each shell completes by its own script; what it needs around it is reduced to what decides the words.
#[test]
fn bash_zsh_and_fish_complete_commands_and_values() {
    let program = env!("CARGO_BIN_EXE_pinhole");
    let directory = Path::new(program).parent().unwrap();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let shells = [
        (
            "bash",
            r#"source <(pinhole completion bash)
            offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pinhole; printf '%s\n' "${COMPREPLY[@]}"; }
            offer pinhole web; offer pinhole agent --firewall ''"#,
        ),
        (
            "zsh",
            r#"compdef() {}; _describe() { print -rl -- "${found[@]%%:*}"; }
            source <(pinhole completion zsh)
            offer() { words=("$@"); CURRENT=$#; _pinhole; }
            offer pinhole web; offer pinhole agent --firewall ''"#,
        ),
        (
            "fish",
            r"pinhole completion fish | source
            function offer; complete --do-complete $argv | string replace -r '\t.*' ''; end
            offer 'pinhole web'; offer 'pinhole agent --firewall '",
        ),
    ];
    for (shell, script) in shells {
        let output = Command::new(shell)
            .args(["-c", script])
            .env("PATH", &path)
            .current_dir(directory.join("deps"))
            .output();
        let output = output.unwrap_or_else(|error| panic!("{shell}: {error}; `make test-rust` installs it"));
        let offered = String::from_utf8(output.stdout).unwrap();
        let words: Vec<_> = offered.lines().collect();
        for expected in ["webhook", "auto", "nftables", "iptables", "dry-run"] {
            assert!(words.contains(&expected), "{shell} offers no {expected}: {offered}");
        }
    }
}
