//! Completion of what only the cluster knows, in the form that kubectl asks its plug-ins for:
//! candidates, a line each, then `:DIRECTIVE` (cobra's `ShellCompDirective`).
//!
//! kubectl runs `kubectl_complete-remora WORDS…`, where the last word is the one that is typed.

use std::time::Duration;

use clap::{Command, CommandFactory as _, Parser as _};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::Job,
    core::v1::{Namespace, Node, Pod, Service},
};
use kube::{Api, Client, api::ListParams, core::PartialObjectMeta};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{access::Access, args::KubeArgs};

/// How long a shell waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Names that are offered.
const NAMES_MAX: u32 = 500;

/// cobra's: no space after the candidate, no file names.
const NO_SPACE: u32 = 2;
const NO_FILES: u32 = 4;
/// cobra's: as the shell thinks.
const DEFAULT: u32 = 0;

/// What a target begins with.
const KINDS: [&str; 8] = ["pod", "deploy", "sts", "ds", "job", "rs", "svc", "node"];

/// What fits at a place of the command line.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// These words and no others.
    Words(Vec<String>),
    Namespace,
    /// `KIND/…`
    Target,
    /// A file, a number, a filter: not ours to know.
    Free,
}

/// Candidates for the last of `words`, and the directive.
pub(super) async fn complete(words: &[String]) -> String {
    let (typed, before) = words
        .split_last()
        .map_or(("", &[][..]), |(typed, before)| (typed.as_str(), before));
    let (mut candidates, directive) = match place(before, typed) {
        Place::Words(words) => (words, NO_FILES),
        Place::Free => (vec![], DEFAULT),
        Place::Namespace => (names(before, "namespace").await, NO_FILES),
        Place::Target => match typed.split_once('/') {
            None => (
                KINDS.map(|kind| format!("{kind}/")).to_vec(),
                NO_SPACE | NO_FILES,
            ),
            Some((kind, _)) => {
                let names = names(before, kind).await;
                let names = names.iter().map(|name| format!("{kind}/{name}"));
                (names.collect(), NO_FILES)
            }
        },
    };
    candidates.retain(|candidate| candidate.starts_with(typed));
    candidates.sort();
    candidates.dedup();
    let mut answer: String = candidates.iter().map(|word| format!("{word}\n")).collect();
    answer += &format!(":{directive}\n");
    answer
}

/// What fits after `before`, where `typed` is begun.
fn place(before: &[String], typed: &str) -> Place {
    let root = KubeArgs::command();
    let mut root = root;
    root.build();
    let mut command = &root;
    let mut targets = 0;
    let mut words = before.iter();
    while let Some(word) = words.next() {
        if let Some(option) = option(command, word) {
            // Its value is the next word, unless it is in this one or there is none.
            if takes_value(option) && !word.contains('=') && words.next().is_none() {
                return match option.get_id().as_str() {
                    "namespace" | "remora_namespace" => Place::Namespace,
                    _ => values(option),
                };
            }
        } else if let Some(below) = command.find_subcommand(word) {
            command = below;
        } else {
            targets += 1;
        }
    }
    if typed.starts_with('-') {
        return Place::Words(options(command));
    }
    match command.get_name() {
        "capture" if targets == 0 => Place::Target,
        "kubectl-remora" => Place::Words(
            command
                .get_subcommands()
                .filter(|command| !command.is_hide_set())
                .map(|command| command.get_name().to_owned())
                .collect(),
        ),
        "completions" if targets == 0 => {
            command.get_positionals().next().map_or(Place::Free, values)
        }
        _ => Place::Free,
    }
}

fn option<'a>(command: &'a Command, word: &str) -> Option<&'a clap::Arg> {
    let (name, _) = word.split_once('=').unwrap_or((word, ""));
    command.get_arguments().find(|arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let short = arg.get_short().map(|short| format!("-{short}"));
        long.as_deref() == Some(name) || short.as_deref() == Some(name)
    })
}

fn takes_value(option: &clap::Arg) -> bool {
    option.get_action().takes_values() && !option.is_require_equals_set()
}

fn values(option: &clap::Arg) -> Place {
    let values = option.get_possible_values();
    if values.is_empty() {
        return Place::Free;
    }
    Place::Words(
        values
            .iter()
            .map(|value| value.get_name().to_owned())
            .collect(),
    )
}

fn options(command: &Command) -> Vec<String> {
    command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
        .collect()
}

/// Names of the objects of a kind; none if the cluster does not tell them soon.
async fn names(before: &[String], kind: &str) -> Vec<String> {
    let found = timeout(PATIENCE, async {
        let access = access(before).await?;
        let client = access.controllers.api()?.clone();
        let namespace = &access.namespace;
        match kind {
            "namespace" => all::<Namespace>(client).await,
            "node" | "nodes" | "no" => all::<Node>(client).await,
            "pod" | "pods" | "po" => of::<Pod>(client, namespace).await,
            "svc" | "service" | "services" => of::<Service>(client, namespace).await,
            "deploy" | "deployment" | "deployments" => of::<Deployment>(client, namespace).await,
            "sts" | "statefulset" | "statefulsets" => of::<StatefulSet>(client, namespace).await,
            "ds" | "daemonset" | "daemonsets" => of::<DaemonSet>(client, namespace).await,
            "job" | "jobs" => of::<Job>(client, namespace).await,
            "rs" | "replicaset" | "replicasets" => of::<ReplicaSet>(client, namespace).await,
            _ => None,
        }
    });
    found.await.ok().flatten().unwrap_or_default()
}

/// With the flags as far as they are typed.
async fn access(before: &[String]) -> Option<Access> {
    let words = std::iter::once("kubectl-remora".to_owned()).chain(before.iter().cloned());
    // A command line that is not whole: what is missing is said by a command that needs nothing.
    let args = KubeArgs::try_parse_from(words.clone())
        .or_else(|_incomplete| KubeArgs::try_parse_from(words.chain(["doctor".to_owned()])))
        .ok()?;
    Access::open(&args.access).await.ok()
}

async fn all<K>(client: Client) -> Option<Vec<String>>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    listed(&Api::<K>::all(client)).await
}

async fn of<K>(client: Client, namespace: &str) -> Option<Vec<String>>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    listed(&Api::<K>::namespaced(client, namespace)).await
}

async fn listed<K>(api: &Api<K>) -> Option<Vec<String>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let list = api
        .list_metadata(&ListParams::default().limit(NAMES_MAX))
        .await
        .ok()?;
    let name = |object: PartialObjectMeta<K>| object.metadata.name;
    Some(list.items.into_iter().filter_map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: &str) -> Place {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let (typed, before) = words.split_last().unwrap();
        place(before, typed)
    }

    fn words(place: Place) -> Vec<String> {
        match place {
            Place::Words(words) => words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commands_come_first_and_hidden_ones_never() {
        let commands = words(at(""));
        assert!(commands.contains(&"capture".to_owned()), "{commands:?}");
        assert!(
            !commands.iter().any(|word| word.starts_with('_')),
            "{commands:?}"
        );
    }

    #[test]
    fn a_capture_wants_a_target_and_then_a_filter() {
        assert_eq!(at("capture "), Place::Target);
        assert_eq!(at("capture -n shop --fixed pod/c"), Place::Target);
        assert_eq!(at("-n shop capture "), Place::Target);
        assert_eq!(at("capture pod/cart "), Place::Free);
    }

    #[test]
    fn an_option_wants_its_value() {
        assert_eq!(at("capture -n "), Place::Namespace);
        assert_eq!(at("capture --namespace sh"), Place::Namespace);
        assert_eq!(at("capture -w "), Place::Free);
        assert_eq!(words(at("list -o ")), ["table", "json"]);
        assert!(words(at("completions ")).contains(&"bash".to_owned()));
    }

    #[test]
    fn a_dash_wants_an_option_of_its_command() {
        let options = words(at("capture --look"));
        for option in ["--look-back", "--namespace", "--container"] {
            assert!(
                options.contains(&option.to_owned()),
                "{option}: {options:?}"
            );
        }
        assert!(!words(at("list -")).contains(&"--look-back".to_owned()));
    }

    #[tokio::test]
    async fn an_answer_ends_with_the_directive() {
        let answer = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            async move { complete(&words).await }
        };
        assert_eq!(answer("capture d").await, "deploy/\nds/\n:6\n");
        assert_eq!(answer("capture pod/x ").await, ":0\n");
        assert!(answer("sta").await.starts_with("status\n:4"));
    }
}
