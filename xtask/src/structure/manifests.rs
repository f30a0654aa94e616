//! Every version in one place, every member under the workspace's lints, every target known to Cargo.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::Finding;
use super::files::TextFile;

const ROOT: &str = "Cargo.toml";
/// Folders at the root whose programs a member's manifest must name, since Cargo finds them only inside a member.
const TARGET_FOLDERS: [&str; 3] = ["tests", "benches", "examples"];
/// Tables of a manifest that hold dependencies.
const DEPENDENCIES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Checks the workspace's manifest, those of its members, and that no target is forgotten.
pub fn check(files: &[TextFile]) -> Result<Vec<Finding>> {
    let root = parse(files, ROOT)?;
    let workspace = table(&root, "workspace");
    let mut findings = unpinned(table(workspace, "dependencies"));
    let mut named = BTreeSet::new();
    for member in strings(workspace.get("members")) {
        let path = format!("{member}/{ROOT}");
        let manifest = parse(files, &path)?;
        findings.extend(own_versions(&path, &manifest));
        if table(&manifest, "lints").get("workspace") != Some(&Value::Boolean(true)) {
            findings.push(at_top(&path, "add `[lints] workspace = true`"));
        }
        named.extend(named_targets(&manifest));
    }
    findings.extend(forgotten(files, &named));
    Ok(findings)
}

fn parse(files: &[TextFile], path: &str) -> Result<Table> {
    let file = files
        .iter()
        .find(|file| file.path == path)
        .with_context(|| format!("{path} is missing; the workspace's manifest needs it"))?;
    file.text.parse().with_context(|| format!("in {path}"))
}

/// The table `key`, empty if there is none.
fn table<'a>(parent: &'a Table, key: &str) -> &'a Table {
    static EMPTY: std::sync::LazyLock<Table> = std::sync::LazyLock::new(Table::new);
    parent.get(key).and_then(Value::as_table).unwrap_or(&EMPTY)
}

fn strings(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let array = value.and_then(Value::as_array);
    array.into_iter().flatten().filter_map(Value::as_str)
}

/// A finding on a manifest as a whole: the parser keeps no line numbers.
fn at_top(path: &str, what: impl Into<String>) -> Finding {
    Finding::new(path, 1, what)
}

/// Dependencies of the workspace that neither lie in it nor have an exact version.
fn unpinned(dependencies: &Table) -> Vec<Finding> {
    let pinned = |dependency: &Value| {
        let version = dependency.get("version").unwrap_or(dependency).as_str();
        dependency.get("path").is_some() || version.is_some_and(|text| text.starts_with('='))
    };
    dependencies
        .iter()
        .filter(|(_, dependency)| !pinned(dependency))
        .map(|(name, _)| at_top(ROOT, format!("pin {name} to one version, `=x.y.z`")))
        .collect()
}

/// Dependencies of a member that do not take their version from the workspace.
fn own_versions(path: &str, manifest: &Table) -> Vec<Finding> {
    let targets = table(manifest, "target")
        .values()
        .filter_map(Value::as_table);
    std::iter::once(manifest)
        .chain(targets)
        .flat_map(|tables| DEPENDENCIES.map(|kind| table(tables, kind)))
        .flatten()
        .filter(|(_, dependency)| dependency.get("workspace") != Some(&Value::Boolean(true)))
        .map(|(name, _)| {
            at_top(
                path,
                format!("write `{name}.workspace = true`, with the version in {ROOT}"),
            )
        })
        .collect()
}

/// Paths, relative to the workspace, of the targets that a member names with `path = "../…"`.
fn named_targets(manifest: &Table) -> Vec<String> {
    ["test", "bench", "example"]
        .into_iter()
        .filter_map(|kind| manifest.get(kind)?.as_array())
        .flatten()
        .filter_map(|target| target.get("path")?.as_str()?.strip_prefix("../"))
        .map(str::to_owned)
        .collect()
}

/// Programs in the target folders that no member names, so that nothing would build or run them.
fn forgotten(files: &[TextFile], named: &BTreeSet<String>) -> Vec<Finding> {
    let is_program = |path: &str| match path.split('/').collect::<Vec<_>>()[..] {
        [folder, file] => TARGET_FOLDERS.contains(&folder) && file.ends_with(".rs"),
        [folder, _, file] => TARGET_FOLDERS.contains(&folder) && file == "main.rs",
        _ => false,
    };
    files
        .iter()
        .filter(|file| is_program(&file.path) && !named.contains(&file.path))
        .map(|file| {
            at_top(
                &file.path,
                "name this target in burn-frontier/Cargo.toml; nothing runs it",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD_ROOT: &str = r#"
        [workspace]
        members = ["a"]
        [workspace.dependencies]
        plain = "=1.2.3"
        kernels = { path = "kernels" }
        table = { version = "=4.5.6", features = ["x"] }
    "#;
    const GOOD_MEMBER: &str = r#"
        [dependencies]
        plain.workspace = true
        table = { workspace = true, optional = true }
        [lints]
        workspace = true
        [[test]]
        name = "t"
        path = "../tests/t.rs"
    "#;

    /// What is reported for two manifests, as `path: message`.
    fn findings(root: &str, member: &str, others: &[&str]) -> Vec<String> {
        let mut files = vec![
            TextFile::new(ROOT, root),
            TextFile::new("a/Cargo.toml", member),
        ];
        files.extend(others.iter().map(|path| TextFile::new(*path, "")));
        let found = check(&files).unwrap();
        found
            .iter()
            .map(|f| format!("{}: {}", f.path, f.what))
            .collect()
    }

    fn only(found: Vec<String>, part: &str) {
        assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
    }

    #[test]
    fn pinned_and_inherited_versions_pass() {
        let found = findings(GOOD_ROOT, GOOD_MEMBER, &["tests/t.rs", "tests/t/part.rs"]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn a_version_that_may_move_is_reported() {
        for loose in ["=1.2.3\"", "=4.5.6\""] {
            let root = GOOD_ROOT.replace(loose, &loose[1..]);
            only(findings(&root, GOOD_MEMBER, &[]), "pin ");
        }
    }

    #[test]
    fn a_member_with_a_version_of_its_own_is_reported() {
        for section in ["[dev-dependencies]", "[target.'cfg(unix)'.dependencies]"] {
            let member = format!("{GOOD_MEMBER}\n{section}\nown = \"=1.0.0\"\n");
            only(findings(GOOD_ROOT, &member, &[]), "own.workspace = true");
        }
    }

    #[test]
    fn a_member_outside_the_lints_is_reported() {
        let member = GOOD_MEMBER.replace("[lints]", "[package.metadata.x]");
        only(findings(GOOD_ROOT, &member, &[]), "[lints]");
    }

    #[test]
    fn a_target_that_no_manifest_names_is_reported() {
        for path in ["tests/u.rs", "examples/u/main.rs", "benches/u.rs"] {
            only(findings(GOOD_ROOT, GOOD_MEMBER, &[path]), path);
        }
    }

    #[test]
    fn a_member_without_a_manifest_is_an_error() {
        assert!(check(&[TextFile::new(ROOT, GOOD_ROOT)]).is_err());
    }
}
