//! Generated files of the repository, written anew by `UPDATE_GOLDEN=1 cargo test --test it`.

use crate::golden::golden;
use crate::program::Program;

#[test]
fn the_published_schema_is_the_one_that_the_program_checks_with() {
    let output = Program::new(&["schema"]).run();
    assert_eq!(output.code, 0, "{}", output.stderr);
    golden("docs/annotation.schema.json", &output.stdout);
}
