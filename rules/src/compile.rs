//! Entries to rules: names resolved, defaults merged, every value checked.

use std::{collections::HashMap, path::Path, str::FromStr};

use serde_saphyr::Spanned;

use crate::{
    Match, Mode, Rules,
    actions::{DefaultAction, Draft, check_actionner, complete, continue_of},
    document::{self, ActionBlock, Entry, MatchBlock, Scalar},
    error::{Fault, Problem, RuleError},
    parameters,
    value::{flag, line_of, parsed},
};

/// Most rule files.
pub const FILES_MAX: usize = 64;
/// Most rules and default actions together.
pub const RULES_MAX: usize = 1024;
/// Most actions of one rule.
pub const ACTIONS_MAX: usize = 16;

impl Rules {
    /// Reads and checks rule files; default actions of one serve the rules of all.
    ///
    /// # Errors
    /// The first fault found, with file and line.
    pub fn load<P: AsRef<Path>>(paths: &[P]) -> Result<Self, RuleError> {
        let mut files = Vec::with_capacity(paths.len().min(FILES_MAX));
        for path in paths {
            let name = path.as_ref().display().to_string();
            let name = remora_capture::text::shown(&name).to_string();
            let text = read(path.as_ref()).map_err(|fault| RuleError {
                file: name.clone(),
                fault,
            })?;
            files.push((name, text));
        }
        Self::parse(
            files
                .iter()
                .map(|(name, text)| (name.as_str(), text.as_str())),
        )
    }

    /// Like [`Rules::load`], from (name, text) pairs.
    ///
    /// # Errors
    /// The first fault found, with file and line.
    pub fn parse<'a>(
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, RuleError> {
        let mut compiler = Compiler::default();
        for (count, (file, text)) in files.into_iter().enumerate() {
            let error = |fault| RuleError {
                file: file.to_owned(),
                fault,
            };
            if count == FILES_MAX {
                return Err(error(Fault::at(0, too_many("files", FILES_MAX))));
            }
            for entry in document::parse(text).map_err(error)? {
                compiler.add(file, entry).map_err(error)?;
            }
        }
        compiler.finish()
    }
}

/// A whole file, but never more than a little over [`document::FILE_MAX`] bytes of it.
fn read(path: &Path) -> Result<String, Fault> {
    use std::io::Read as _;
    let unreadable = |e: std::io::Error| Fault::at(0, Problem::Unreadable(e.to_string()));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    let limit = document::FILE_MAX as u64 + 1;
    file.take(limit)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    Ok(text)
}

/// Where a name was first seen.
#[derive(Debug)]
struct Seen {
    file: String,
    line: u64,
}

#[derive(Debug, Default)]
struct Compiler {
    defaults: HashMap<String, DefaultAction>,
    /// Rules with the file, since their actions wait for the defaults.
    drafts: Vec<(String, Draft)>,
    seen: HashMap<(&'static str, String), Seen>,
}

impl Compiler {
    fn add(&mut self, file: &str, entry: Spanned<Entry>) -> Result<(), Fault> {
        let line = line_of(&entry);
        let Entry {
            rule,
            action,
            matches,
            actions,
            continues,
            dry_run,
            actionner,
            parameters,
            ..
        } = entry.value;
        match (rule, action) {
            (Some(_), Some(_)) => Err(Fault::at(line, Problem::RuleAndAction)),
            (None, None) => Err(Fault::at(line, Problem::Nameless)),
            (Some(name), None) => {
                misplaced(
                    line,
                    "a rule; it belongs to an action",
                    &[
                        ("actionner", actionner.is_some()),
                        ("parameters", parameters.is_some()),
                    ],
                )?;
                self.add_rule(file, name, matches, actions, continues, dry_run)
            }
            (None, Some(name)) => {
                misplaced(
                    line,
                    "a default action; it belongs to a rule",
                    &[
                        ("match", matches.is_some()),
                        ("actions", actions.is_some()),
                        ("dry_run", dry_run.is_some()),
                    ],
                )?;
                let name = self.name("action", file, name)?;
                let default = DefaultAction {
                    actionner,
                    parameters: parameters.unwrap_or_default(),
                    after: continues.as_ref().map(continue_of).transpose()?,
                };
                // Checked here too: a default that no rule uses yet is to be right all the same.
                if let Some(actionner) = &default.actionner {
                    check_actionner(actionner)?;
                }
                parameters::compile(line, &default.parameters)?;
                self.defaults.insert(name, default);
                Ok(())
            }
        }
    }

    fn add_rule(
        &mut self,
        file: &str,
        name: Spanned<String>,
        matches: Option<Spanned<MatchBlock>>,
        actions: Option<Spanned<Vec<Spanned<ActionBlock>>>>,
        continues: Option<Spanned<Scalar>>,
        dry_run: Option<Spanned<Scalar>>,
    ) -> Result<(), Fault> {
        let line = line_of(&name);
        let name = self.name("rule", file, name)?;
        let actions = actions.map(|a| a.value).unwrap_or_default();
        if actions.is_empty() {
            return Err(Fault::at(line, Problem::NoActions(name)));
        }
        if actions.len() > ACTIONS_MAX {
            return Err(Fault::at(line, too_many("actions in a rule", ACTIONS_MAX)));
        }
        let draft = Draft {
            name,
            matches: matches
                .map(|m| match_of(m.value))
                .transpose()?
                .unwrap_or_default(),
            actions,
            after: continues
                .as_ref()
                .map(continue_of)
                .transpose()?
                .unwrap_or_default(),
            mode: match dry_run
                .as_ref()
                .map(|value| flag("dry_run", value))
                .transpose()?
            {
                Some(true) => Mode::DryRun,
                Some(false) | None => Mode::Live,
            },
        };
        self.drafts.push((file.to_owned(), draft));
        Ok(())
    }

    /// A name that was not there before.
    fn name(
        &mut self,
        kind: &'static str,
        file: &str,
        name: Spanned<String>,
    ) -> Result<String, Fault> {
        let line = line_of(&name);
        let name = name.value;
        if name.trim().is_empty() {
            return Err(Fault::at(line, Problem::Nameless));
        }
        if let Some(Seen { file, line: first }) = self.seen.get(&(kind, name.clone())) {
            let problem = Problem::Twice {
                kind,
                name,
                file: file.clone(),
                first: *first,
            };
            return Err(Fault::at(line, problem));
        }
        if self.seen.len() == RULES_MAX {
            return Err(Fault::at(
                line,
                too_many("rules and default actions", RULES_MAX),
            ));
        }
        self.seen.insert(
            (kind, name.clone()),
            Seen {
                file: file.to_owned(),
                line,
            },
        );
        Ok(name)
    }

    fn finish(self) -> Result<Rules, RuleError> {
        let Self {
            defaults, drafts, ..
        } = self;
        let rules = drafts.into_iter().map(|(file, draft)| {
            complete(&defaults, &file, draft).map_err(|fault| RuleError { file, fault })
        });
        Ok(Rules {
            rules: rules.collect::<Result<_, _>>()?,
        })
    }
}

fn misplaced(line: u64, place: &'static str, keys: &[(&'static str, bool)]) -> Result<(), Fault> {
    match keys.iter().find(|(_, present)| *present) {
        Some((key, _)) => Err(Fault::at(line, Problem::Misplaced { key, place })),
        None => Ok(()),
    }
}

fn too_many(what: &'static str, max: usize) -> Problem {
    Problem::TooMany { what, max }
}

fn match_of(block: MatchBlock) -> Result<Match, Fault> {
    let MatchBlock {
        rules,
        tags,
        output_fields,
        priority,
        source,
    } = block;
    Ok(Match {
        rules: listed(rules)?.into_iter().map(|name| name.value).collect(),
        tags: conditions(tags)?,
        output_fields: conditions(output_fields)?,
        priority: priority
            .map(|p| parsed(line_of(&p), &p.value.to_string()))
            .transpose()?,
        source,
    })
}

fn conditions<T>(texts: Option<Spanned<Vec<Spanned<String>>>>) -> Result<Vec<T>, Fault>
where
    T: FromStr<Err = Problem>,
{
    listed(texts)?
        .iter()
        .map(|text| parsed(line_of(text), &text.value))
        .collect()
}

/// A list that is there has something in it.
fn listed<T>(list: Option<Spanned<Vec<T>>>) -> Result<Vec<T>, Fault> {
    match list {
        None => Ok(Vec::new()),
        Some(list) if list.value.is_empty() => {
            Err(Fault::at(line_of(&list), Problem::EmptyCondition))
        }
        Some(list) => Ok(list.value),
    }
}
