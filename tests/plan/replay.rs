//! docs/frontier.md is what the planner says.

#[path = "../../examples/frontier/document.rs"]
mod document;

#[test]
fn the_document_is_what_the_planner_says() {
    let written = include_str!("../../docs/frontier.md");
    let now = document::document().unwrap();
    assert!(
        now == written,
        "docs/frontier.md is out of date; run `cargo xtask frontier`"
    );
}
