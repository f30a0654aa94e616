//! No path of somebody's machine in a committed file.

use super::Finding;
use super::files::TextFile;

/// First names of the absolute paths that exist on one machine only.
const MACHINE_FOLDERS: [&str; 5] = ["home", "root", "tmp", "work", "Users"];

/// Reports absolute paths into [`MACHINE_FOLDERS`]. A placeholder such as `<user>` or `$USER` may follow the folder.
pub fn machine_paths(file: &TextFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, text) in (1..).zip(file.text.lines()) {
        for folder in MACHINE_FOLDERS {
            let folder = format!("/{folder}/");
            for (at, _) in text.match_indices(&folder) {
                if starts_path(&text[..at]) && names_something(&text[at + folder.len()..]) {
                    let what = format!(
                        "a path below {folder} exists on one machine only; use a relative or a temporary one"
                    );
                    findings.push(Finding::new(&file.path, line, what));
                }
            }
        }
    }
    findings
}

/// Whether a `/` after `before` begins an absolute path, rather than continuing a relative one or a link.
fn starts_path(before: &str) -> bool {
    let last = before.chars().next_back();
    !last.is_some_and(|c| c.is_alphanumeric() || "_-.~}>/)".contains(c))
}

fn names_something(after: &str) -> bool {
    let first = after.chars().next();
    first.is_some_and(|c| c.is_alphanumeric() || c == '.' || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        // A stand-in for the slash keeps this file free of what it forbids.
        let file = TextFile::new("a.md", text.replace('|', "/"));
        machine_paths(&file).iter().map(|f| f.line).collect()
    }

    #[test]
    fn paths_of_one_machine_are_reported() {
        assert_eq!(lines("fine\nopen(\"|home|ada|data\")"), [2]);
        assert_eq!(lines("|root|.cargo\n--out |tmp|run"), [1, 2]);
        assert_eq!(lines("DATA=|Users|ada"), [1]);
    }

    #[test]
    fn relative_paths_links_and_placeholders_pass() {
        assert!(lines("target|tmp|x ..|tmp|x ${BASE}|tmp|x").is_empty());
        assert!(lines("https:||example.org|home|ada").is_empty());
        assert!(lines("|home|<you>|data |tmp|$USER |lustre|orion|x").is_empty());
    }
}
