//! The keys that a settings file may have: a command's flags, as clap knows them.

use std::{any::TypeId, ffi::OsString};

use clap::{Arg, ArgAction, Command, builder::ValueParser};

use crate::{CONFIG, Given, is_said};

/// What a key's value is in TOML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A flag without a value: `true` or `false`.
    Switch,
    /// A string; where it is a number of something, a whole number, too.
    Value { number: bool },
    /// A string, or `true` for the flag alone.
    SwitchOrValue,
    /// A flag that may be given again: a list, or one string.
    List,
}

/// A flag as a key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) arg: Arg,
    pub(crate) kind: Kind,
}

impl Key {
    fn of(arg: &Arg) -> Option<Self> {
        let name = arg.get_long()?.to_owned();
        let is_number = [
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<usize>(),
        ]
        .into_iter()
        .any(|number| arg.get_value_parser().type_id() == number);
        let kind = match arg.get_action() {
            ArgAction::SetTrue => Kind::Switch,
            ArgAction::Append => Kind::List,
            ArgAction::Set if arg.get_num_args().is_some_and(|n| n.min_values() == 0) => {
                Kind::SwitchOrValue
            }
            ArgAction::Set => Kind::Value { number: is_number },
            // Help and version, which do something else than run.
            _ => return None,
        };
        Some(Self {
            name,
            arg: arg.clone(),
            kind,
        })
    }

    /// What the flag's own parser says of a value.
    pub(crate) fn judge(&self, value: &str) -> Result<(), String> {
        let parser = self.arg.get_value_parser().clone();
        let alone = bare(&self.arg).value_parser(parser);
        let command = Command::new("file").no_binary_name(true).arg(alone);
        match command.try_get_matches_from([format!("--{}={value}", self.name)]) {
            Ok(_) => Ok(()),
            Err(error) => Err(reason(&error, &self.arg)),
        }
    }
}

/// The keys of one command.
#[derive(Debug)]
pub(crate) struct Keys {
    root: Command,
    command: &'static str,
    keys: Vec<Key>,
}

impl Keys {
    pub(crate) fn of(mut root: Command, command: &'static str) -> Self {
        root.build();
        let found = root.find_subcommand(command);
        let keys = found.into_iter().flat_map(Command::get_arguments);
        let keys = keys.filter_map(Key::of).filter(|key| key.name != CONFIG);
        Self {
            keys: keys.collect(),
            root,
            command,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The key that is most like `name`.
    pub(crate) fn nearest(&self, name: &str) -> Option<&str> {
        let name = name.to_lowercase().replace('_', "-");
        let near = |key: &&Key| strsim::normalized_damerau_levenshtein(&name, &key.name);
        let nearest = self
            .keys
            .iter()
            .max_by(|a, b| near(a).total_cmp(&near(b)))
            .filter(|key| near(key) >= 0.5);
        nearest.map(|key| key.name.as_str())
    }

    /// What the words and the environment give of the command, whatever else they lack: a file may have
    /// it. `None` if they are of another command, or no words of this one.
    pub(crate) fn given(&self, words: &[OsString]) -> Option<Given> {
        let ours = self.root.find_subcommand(self.command)?;
        let root = Command::new("program").args(bare_all(&self.root));
        let command = Command::new(self.command).args(bare_all(ours));
        let root = root.disable_help_flag(true).disable_version_flag(true);
        let command = command.disable_help_flag(true).disable_version_flag(true);
        let matches = root.subcommand(command).try_get_matches_from(words).ok()?;
        let (_, of_command) = matches.subcommand()?;
        let ids = ours.get_arguments().map(|arg| arg.get_id().as_str());
        let ids = ids.filter(|id| is_said(of_command, id) || is_said(&matches, id));
        let config = of_command.try_get_raw(CONFIG).ok().flatten();
        Some(Given {
            config: config.and_then(|mut paths| paths.next()).map(Into::into),
            ids: ids.map(str::to_owned).collect(),
        })
    }
}

/// All flags but help and version.
fn bare_all(command: &Command) -> Vec<Arg> {
    let does_else = |arg: &&Arg| !arg.get_action().takes_values() && !is_switch(arg);
    let flags = command.get_arguments().filter(|arg| !does_else(arg));
    flags.map(bare).collect()
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// The flag without what it says of its value and of other flags.
fn bare(arg: &Arg) -> Arg {
    let mut bare = Arg::new(arg.get_id().clone())
        .action(arg.get_action().clone())
        .required(false);
    if let Some(long) = arg.get_long() {
        bare = bare.long(long.to_owned());
    }
    if let Some(short) = arg.get_short() {
        bare = bare.short(short);
    }
    for alias in arg.get_all_aliases().unwrap_or_default() {
        bare = bare.alias(alias.to_owned());
    }
    if let Some(variable) = arg.get_env() {
        bare = bare.env(variable.to_owned());
    }
    if matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) {
        bare = bare.value_parser(ValueParser::os_string());
        if let Some(number) = arg.get_num_args() {
            bare = bare.num_args(number);
        }
    }
    bare
}

/// Why a value is none, in one line.
fn reason(error: &clap::Error, arg: &Arg) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    let possible = arg.get_possible_values();
    if possible.is_empty() {
        return crate::fault::one_line(error);
    }
    let names: Vec<_> = possible.iter().map(|value| value.get_name()).collect();
    format!("use one of: {}", names.join(", "))
}
