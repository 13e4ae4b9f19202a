//! What of the chart is generated.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use kube::CustomResourceExt as _;
use remora_crd::Capture;

use crate::Files;

const CHART: &str = "deploy/helm/remora";
const RULES: &str = "deploy/rules/falco.yaml";
/// Where the README has the table of values.
const TABLE: &str = "<!-- values -->\n";

pub(crate) fn generate(root: &Path) -> anyhow::Result<Files> {
    let read = |path: &str| fs::read_to_string(root.join(path)).with_context(|| path.to_owned());
    let template = read(&format!("{CHART}/README.md.in"))?;
    let values = read(&format!("{CHART}/values.yaml"))?;
    Ok(Files::from([
        (
            format!("{CHART}/files/captures.remora.dev.yaml"),
            schema()?.into_bytes(),
        ),
        (
            format!("{CHART}/files/falco.yaml"),
            read(RULES)?.into_bytes(),
        ),
        (
            format!("{CHART}/README.md"),
            readme(&template, &values)?.into_bytes(),
        ),
    ]))
}

fn schema() -> anyhow::Result<String> {
    let head = "# Generated from the crate `crd` by `cargo xtask codegen`.\n";
    Ok(head.to_owned() + &serde_saphyr::to_string(&Capture::crd())?)
}

fn readme(template: &str, values: &str) -> anyhow::Result<String> {
    let (before, after) = template
        .split_once(TABLE)
        .with_context(|| format!("README.md.in has no line `{}`", TABLE.trim()))?;
    let mut text = format!("{before}| value | default | |\n|---|---|---|\n");
    for Value {
        path,
        default,
        says,
    } in described(values)?
    {
        writeln!(text, "| `{path}` | {default} | {says} |")?;
    }
    Ok(text + after)
}

/// A value that a comment describes.
#[derive(Debug, PartialEq, Eq)]
struct Value {
    path: String,
    /// As the file writes it, if it is on one line.
    default: String,
    says: String,
}

/// Values with a comment `# -- ` above them. Knows as much of YAML as a values file needs: keys with
/// their indentation, two blanks a level.
fn described(values: &str) -> anyhow::Result<Vec<Value>> {
    let mut found: Vec<Value> = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let mut says: Option<String> = None;
    for (number, line) in (1..).zip(values.lines()) {
        let text = line.trim_start();
        let depth = (line.len() - text.len()) / 2;
        if let Some(comment) = text.strip_prefix('#') {
            let comment = comment.trim();
            match (comment.strip_prefix("-- "), &mut says) {
                (Some(start), _) => says = Some(start.to_owned()),
                (None, Some(says)) => {
                    says.push(' ');
                    says.push_str(comment);
                }
                (None, None) => {}
            }
            continue;
        }
        let Some((key, default)) = text.split_once(':').filter(|_| !text.starts_with('-')) else {
            ensure!(
                says.is_none() || text.is_empty(),
                "values.yaml:{number}: a comment describes no key"
            );
            continue;
        };
        path.truncate(depth);
        path.push(key.trim_matches('"').to_owned());
        if let Some(says) = says.take() {
            let default = default.trim();
            found.push(Value {
                path: path.join("."),
                default: match default {
                    "" => String::new(),
                    default => format!("`{default}`"),
                },
                says: says.replace('|', "\\|"),
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_told_with_its_path_default_and_comment() {
        let values = "# a file\n\nimage:\n  # -- Where\n  # it is.\n  repository: a/b\n  tag: \"\"\n\
                      # -- A list | of names.\nnames:\n  - a: b\n";
        let value = |path: &str, default: &str, says: &str| Value {
            path: path.to_owned(),
            default: default.to_owned(),
            says: says.to_owned(),
        };
        let expected = [
            value("image.repository", "`a/b`", "Where it is."),
            value("names", "", "A list \\| of names."),
        ];
        assert_eq!(described(values).unwrap(), expected);
    }

    #[test]
    fn a_comment_that_describes_nothing_is_an_error() {
        let error = described("names:\n  # -- Which?\n  - a\n").unwrap_err();
        assert!(error.to_string().contains("values.yaml:3"), "{error}");
    }
}
