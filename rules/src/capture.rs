//! A plan and an alert, made into a capture: whose packets, and which of them. Pure.

use std::net::IpAddr;

use remora_capture::{
    alert::{
        Alert,
        mapping::{self, NoTarget},
    },
    filter::{Filter, FilterError, Names, compiler},
    session::{PodRef, SessionSpec, SpecError, Target},
};

use crate::{
    CaptureParameters, Dns, Ends, NoValue, Plan, RuleFilter, Scope, Template,
    parameters::scope_word,
};

/// The capture that a plan wants for an alert.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Without trigger and names, and with the rule's own labels only.
    pub spec: SessionSpec,
    /// How the filter is another than the rule's text says, for a person.
    pub notes: Vec<String>,
}

/// Whose packets a plan wants, where a cluster is known.
#[derive(Clone, Debug, PartialEq)]
pub enum Whose {
    /// The spec's target, on the alert's node.
    Target,
    /// All pods of the deployment that this pod is of.
    Deployment(PodRef),
    /// All pods of the services that this pod is behind.
    Service(PodRef),
    /// All of the alert's node.
    Node,
}

/// As [`Wanted`], of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterWanted {
    pub whose: Whose,
    pub wanted: Wanted,
    /// The filter for the connection's other end, and that end's address, where the rule wants both.
    pub other_end: Option<(IpAddr, Filter)>,
}

/// Rule and alert together make no capture.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum NoCapture {
    #[error(transparent)]
    Target(#[from] NoTarget),
    #[error(
        "{what} needs the cluster part of Remora, which this version does not have; use \
         `scope: container`, or leave it out"
    )]
    NeedsCluster { what: String },
    #[error(
        "the alert does not name its pod: add k8s.ns.name and k8s.pod.name to the rule's output \
         (falco.yaml: append_output)"
    )]
    NoPod,
    #[error("{0}, and the rule has no `fallback`")]
    NoValue(#[from] NoValue),
    #[error("the rule's filter `{rule}` and the alert's `{terms}`: {error}")]
    Filter {
        rule: String,
        terms: String,
        error: Box<FilterError>,
    },
    #[error(transparent)]
    Spec(#[from] SpecError),
}

impl Plan<'_> {
    /// The capture that this plan wants for `alert`. Nothing of the alert is in its filter but
    /// addresses, ports and protocols.
    ///
    /// # Errors
    /// [`NoCapture`], which says what is missing.
    pub fn capture(&self, alert: &Alert) -> Result<Wanted, NoCapture> {
        let parameters = &self.action.capture;
        let mut notes = Vec::new();
        let mut spec = parameters.spec(parameters.target(alert)?);
        spec.filter = parameters.filter(alert, &mut notes)?;
        spec.validate()?;
        Ok(Wanted { spec, notes })
    }
}

impl Plan<'_> {
    /// The capture that this plan wants for `alert`, by who knows the cluster.
    ///
    /// # Errors
    /// [`NoCapture`], which says what is missing.
    pub fn capture_in_cluster(&self, alert: &Alert) -> Result<ClusterWanted, NoCapture> {
        let parameters = &self.action.capture;
        let pod = || mapping::named_pod(alert).ok_or(NoCapture::NoPod);
        let (whose, target) = match parameters.scope {
            Scope::Container => (Whose::Target, target_or_pod(alert)?),
            Scope::Pod => {
                let by_name = || pod().map(Target::Pod);
                (Whose::Target, mapping::pod(alert).map_or_else(by_name, Ok)?)
            }
            Scope::Deployment => (Whose::Deployment(pod()?), Target::Pod(pod()?)),
            Scope::Service => (Whose::Service(pod()?), Target::Pod(pod()?)),
            Scope::Node => (Whose::Node, Target::CgroupPath("/".to_owned())),
        };
        let mut notes = Vec::new();
        let mut spec = parameters.spec(target);
        spec.filter = parameters.filter(alert, &mut notes)?;
        spec.validate()?;
        let other_end = match parameters.ends {
            Ends::Alerted => None,
            Ends::Both => other_end(alert, &spec.filter, &mut notes)?,
        };
        Ok(ClusterWanted {
            whose,
            wanted: Wanted { spec, notes },
            other_end,
        })
    }
}

/// The container, or else the pod: its name is enough where there is a cluster.
fn target_or_pod(alert: &Alert) -> Result<Target, NoCapture> {
    let pod = || mapping::named_pod(alert).map(Target::Pod);
    mapping::target(alert).or_else(|error| pod().ok_or(error.into()))
}

/// At the other end the connection's packets are those with this end's address.
fn other_end(
    alert: &Alert,
    filter: &Filter,
    notes: &mut Vec<String>,
) -> Result<Option<(IpAddr, Filter)>, NoCapture> {
    let Some(other) = mapping::endpoint(alert).and_then(|endpoint| endpoint.ip) else {
        notes.push("the alert does not tell the connection's other end".to_owned());
        return Ok(None);
    };
    let own = mapping::endpoint(alert).and_then(|endpoint| endpoint.own);
    let Some(own) = own else {
        return Ok(Some((other, filter.clone())));
    };
    let terms = format!("host {own}");
    let both = Filter::unread(filter.text())
        .and_then(|filter| Ok(filter.both(&Filter::parse(&terms)?)))
        .and_then(|text| Filter::compile(&text, compiler(Names::Refused)));
    match both {
        Ok(both) => Ok(Some((other, both))),
        Err(error) => Err(NoCapture::Filter {
            rule: filter.text().to_owned(),
            terms,
            error: Box::new(error),
        }),
    }
}

impl CaptureParameters {
    /// What of it this version cannot do on any node, as the rule has it.
    pub(crate) fn needs_cluster(&self) -> Option<String> {
        match (self.scope, self.ends) {
            (Scope::Deployment | Scope::Service | Scope::Node, _) => {
                Some(format!("`scope: {}`", scope_word(self.scope)))
            }
            (_, Ends::Both) => Some("`both_ends: true`".to_owned()),
            (Scope::Container | Scope::Pod, Ends::Alerted) => None,
        }
    }

    fn target(&self, alert: &Alert) -> Result<Target, NoCapture> {
        if let Some(what) = self.needs_cluster() {
            return Err(NoCapture::NeedsCluster { what });
        }
        if self.scope == Scope::Pod {
            return mapping::pod(alert).ok_or_else(|| NoCapture::NeedsCluster {
                what: "`scope: pod` for an alert without `thread.cgroups` of a pod".to_owned(),
            });
        }
        Ok(mapping::target(alert)?)
    }

    /// The rule's filter and the traffic's terms, both of which must match; name lookups beside
    /// them where the rule wants those.
    fn filter(&self, alert: &Alert, notes: &mut Vec<String>) -> Result<Filter, NoCapture> {
        let terms = mapping::terms(alert, self.traffic).to_string();
        let rule = match &self.filter {
            RuleFilter::Fixed(filter) => filter.text().to_owned(),
            RuleFilter::Template { template, fallback } => {
                filled(template, fallback.as_ref(), alert, notes)?
            }
        };
        self.joined(&rule, &terms)
            .map_err(|error| NoCapture::Filter {
                rule,
                terms,
                error: Box::new(error),
            })
    }

    fn joined(&self, rule: &str, terms: &str) -> Result<Filter, FilterError> {
        // Compiled once, when it is whole: each part was when the rule was read.
        let both = Filter::unread(rule)?.both(&Filter::parse(terms)?);
        let text = match self.dns {
            Dns::Too if !both.is_empty() => format!("({both}) or port 53"),
            Dns::Too | Dns::AsFiltered => both,
        };
        // An alert does not wait for a name service: rules have addresses.
        Filter::compile(&text, compiler(Names::Refused))
    }
}

/// The template's text for this alert, or the fallback's.
fn filled(
    template: &Template,
    fallback: Option<&Filter>,
    alert: &Alert,
    notes: &mut Vec<String>,
) -> Result<String, NoCapture> {
    match (template.fill(alert), fallback) {
        (Ok(filled), _) => {
            notes.extend(
                filled.left_out.iter().map(|hole| {
                    format!("the alert has no value for `{hole}`: its term is left out")
                }),
            );
            Ok(filled.text)
        }
        (Err(error), Some(fallback)) => {
            notes.push(format!("{error}: the rule's `fallback` is taken"));
            Ok(fallback.text().to_owned())
        }
        (Err(error), None) => Err(error.into()),
    }
}
