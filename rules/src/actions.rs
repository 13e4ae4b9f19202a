//! A rule's actions over the default actions of their names.

use std::collections::HashMap;

use serde_saphyr::Spanned;

use crate::{
    Action, Continue, Match, Mode, Rule,
    document::{ActionBlock, ParameterBlock, Scalar},
    error::{Fault, Problem},
    parameters,
    value::{flag, line_of},
};

/// The one actionner of this version.
const ACTIONNER: &str = "remora:capture";

/// A default action, kept until the rules are complete.
#[derive(Debug)]
pub(crate) struct DefaultAction {
    pub(crate) actionner: Option<Spanned<String>>,
    pub(crate) parameters: ParameterBlock,
    pub(crate) after: Option<Continue>,
}

/// A rule whose actions are not yet merged with the defaults.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) matches: Match,
    pub(crate) actions: Vec<Spanned<ActionBlock>>,
    pub(crate) after: Continue,
    pub(crate) mode: Mode,
}

/// The draft with its actions.
pub(crate) fn complete(
    defaults: &HashMap<String, DefaultAction>,
    file: &str,
    draft: Draft,
) -> Result<Rule, Fault> {
    let Draft {
        name,
        matches,
        actions: blocks,
        after,
        mode,
    } = draft;
    let mut actions: Vec<Action> = Vec::with_capacity(blocks.len());
    let mut lines = Vec::with_capacity(blocks.len());
    for block in blocks {
        let line = line_of(&block);
        let action = action_of(defaults, block)?;
        // A capture is known again by its rule and action.
        if let Some(at) = actions.iter().position(|a| a.name == action.name) {
            let (name, file) = (action.name, file.to_owned());
            let problem = Problem::Twice {
                kind: "action",
                name,
                file,
                first: lines[at],
            };
            return Err(Fault::at(line, problem));
        }
        actions.push(action);
        lines.push(line);
    }
    Ok(Rule {
        name,
        matches,
        actions,
        after,
        mode,
    })
}

pub(crate) fn continue_of(value: &Spanned<Scalar>) -> Result<Continue, Fault> {
    Ok(if flag("continue", value)? {
        Continue::Next
    } else {
        Continue::Stop
    })
}
pub(crate) fn check_actionner(actionner: &Spanned<String>) -> Result<(), Fault> {
    if actionner.value == ACTIONNER {
        return Ok(());
    }
    Err(Fault::at(
        line_of(actionner),
        Problem::Actionner(actionner.value.clone()),
    ))
}

/// The rule's action over the default of its name: what the rule says wins, key by key.
fn action_of(
    defaults: &HashMap<String, DefaultAction>,
    block: Spanned<ActionBlock>,
) -> Result<Action, Fault> {
    let line = line_of(&block);
    let ActionBlock {
        action,
        actionner,
        continues,
        parameters,
        ..
    } = block.value;
    let Some(name) = action.filter(|name| !name.trim().is_empty()) else {
        return Err(Fault::at(line, Problem::Nameless));
    };
    let default = defaults.get(&name);
    let actionner = actionner
        .as_ref()
        .or(default.and_then(|d| d.actionner.as_ref()));
    match actionner {
        Some(actionner) => check_actionner(actionner)?,
        None => return Err(Fault::at(line, Problem::NoActionner(name))),
    }
    let block = parameters.unwrap_or_default();
    let block = match default {
        Some(default) => block.or(default.parameters.clone()),
        None => block,
    };
    let after = continues.as_ref().map(continue_of).transpose()?;
    Ok(Action {
        capture: parameters::compile(line, &block)?,
        after: after.or(default.and_then(|d| d.after)).unwrap_or_default(),
        name,
    })
}
