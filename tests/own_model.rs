//! The lines of the example that the documents show are the example's.

use std::path::Path;

#[test]
fn the_readme_and_the_library_show_the_lines_of_the_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let example = read("examples/own_model/main.rs");
    let (_, rest) = example.split_once("from here\n").unwrap();
    let (lines, _) = rest.split_once("// to here").unwrap();
    let lines = lines.trim_end();
    assert!(lines.lines().count() <= 45, "too many lines to be read");
    let readme = read("README.md");
    assert!(readme.contains(lines), "README.md shows other lines");
    let library = read("burn-frontier/src/lib.rs");
    let documented: Vec<_> = library
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect();
    let documented = documented.join("\n");
    assert!(documented.contains(lines), "lib.rs shows other lines");
}
