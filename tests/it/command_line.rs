//! The command line as a whole: usage errors, exit codes, help.

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
