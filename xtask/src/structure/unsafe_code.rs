//! `unsafe` only where the architecture allows it, and never without its reason.
//!
//! Clippy asks for the reason too, but sees only what the selected features compile; this sees all files.

use super::Finding;
use super::code::only_code;
use super::files::TextFile;

/// Starts of the paths of files that may be unsafe: foreign libraries, device kernels, a memory map, and a counting allocator.
const ALLOWED: [&str; 5] = [
    "burn-frontier/src/comm/",
    "burn-frontier/src/ops/backends/",
    "burn-frontier/src/data/indexed.rs",
    "kernels/",
    "tests/plan_memory/",
];
/// What a comment on an unsafe block says first.
const REASON: &str = "SAFETY:";

/// Reports each `unsafe` outside the allowed files, and each unsafe block or implementation without its reason.
pub fn check(file: &TextFile) -> Vec<Finding> {
    let code = only_code(&file.text);
    let code: Vec<&str> = code.lines().collect();
    let text: Vec<&str> = file.text.lines().collect();
    let allowed = ALLOWED.iter().any(|start| file.path.starts_with(start));
    let mut findings = Vec::new();
    for (line, column) in keywords(&code) {
        if !allowed {
            let what = format!("unsafe code belongs in {}", ALLOWED.join(", "));
            findings.push(Finding::new(&file.path, line + 1, what));
        }
        if needs_reason(&code, line, column) && !has_reason(&code, &text, line) {
            let what = format!("unsafe without a `// {REASON}` comment on the line above");
            findings.push(Finding::new(&file.path, line + 1, what));
        }
    }
    findings
}

/// Line and column after each keyword `unsafe`.
fn keywords<'a>(code: &'a [&str]) -> impl Iterator<Item = (usize, usize)> + 'a {
    const KEYWORD: &str = "unsafe";
    let name = |c: char| c.is_alphanumeric() || c == '_' || c == '#';
    code.iter().enumerate().flat_map(move |(line, text)| {
        text.match_indices(KEYWORD).filter_map(move |(at, _)| {
            let end = at + KEYWORD.len();
            (!text[..at].ends_with(name) && !text[end..].starts_with(name)).then_some((line, end))
        })
    })
}

/// Whether a block or an implementation follows, rather than a function or an attribute.
fn needs_reason(code: &[&str], line: usize, column: usize) -> bool {
    let following = code[line + 1..].iter().copied();
    std::iter::once(&code[line][column..])
        .chain(following)
        .map(str::trim)
        .find(|text| !text.is_empty())
        .is_some_and(|text| text.starts_with('{') || text.starts_with("impl"))
}

/// Whether the reason stands on the line, or in the comment directly above it or above the statement it continues.
fn has_reason(code: &[&str], text: &[&str], line: usize) -> bool {
    if text[line].contains(REASON) {
        return true;
    }
    for above in (0..line).rev() {
        let (code, text) = (code[above].trim(), text[above].trim());
        if code.is_empty() && text.contains(REASON) {
            return true;
        }
        if text.is_empty() || code.ends_with([';', '{', '}', ',']) {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let file = TextFile::new(path, text);
        check(&file).iter().map(|finding| finding.line).collect()
    }

    const KERNEL: &str = "kernels/src/lib.rs";

    #[test]
    fn unsafe_code_outside_the_allowed_files_is_reported() {
        let text = "fn f() {\n    // SAFETY: checked.\n    unsafe { g() }\n}\nunsafe fn g() {}\n";
        assert_eq!(lines("burn-frontier/src/mesh.rs", text), [3, 5]);
        for path in [KERNEL, "burn-frontier/src/comm/mpi.rs"] {
            assert!(lines(path, text).is_empty(), "{path}");
        }
    }

    #[test]
    fn an_unsafe_block_or_impl_without_its_reason_is_reported() {
        assert_eq!(lines(KERNEL, "fn f() {\n    unsafe { g() }\n}\n"), [2]);
        assert_eq!(lines(KERNEL, "unsafe impl Send for A {}\n"), [1]);
        let of_another =
            "// SAFETY: the first.\nlet a = unsafe { f() };\nlet b = unsafe { g() };\n";
        assert_eq!(lines(KERNEL, of_another), [3]);
        assert_eq!(lines(KERNEL, "// SAFETY: apart.\n\nunsafe\n{ f() }\n"), [3]);
    }

    #[test]
    fn a_reason_may_stand_above_the_statement_or_on_the_line() {
        let text = "// SAFETY: of two\n// lines.\n#[cfg(unix)]\nlet a =\n    unsafe { f() };\n";
        assert!(lines(KERNEL, text).is_empty());
        assert!(lines(KERNEL, "unsafe { f() } // SAFETY: here.\n").is_empty());
    }

    #[test]
    fn the_word_in_texts_and_longer_names_is_no_keyword() {
        let text = "//! unsafe { }\n#![deny(unsafe_op_in_unsafe_fn)]\nlet a = \"unsafe { }\";\n";
        assert!(lines("burn-frontier/src/lib.rs", text).is_empty());
    }
}
