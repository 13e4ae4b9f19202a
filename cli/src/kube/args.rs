//! The grammar of `kubectl remora`.

use std::{num::NonZeroU64, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use remora_capture::{session::CaptureId, upload::SinkName};

use super::address::ControllerAddress;
use crate::{
    args::Format,
    options::{self, CaptureOptions},
};

const ABOUT: &str =
    "Captures packets of pods, workloads, services and nodes of a Kubernetes cluster";

const EXAMPLES: &str = "\
Examples:
  kubectl remora capture pod/cart-7d9 -n shop -f 'tcp port 443' -w - | wireshark -k -i -
  kubectl remora capture deploy/cart -n shop --look-back 30s -a duration:60 -w cart.pcapng
  kubectl remora capture -l app=cart -w cart.pcapng udp port 53
  kubectl remora list; kubectl remora get 01J9ZQ3C7M8N4R5T6V7W8X9YZA -w copy.pcapng
  kubectl remora doctor                              what is missing on the way to a capture

Exit code 0: done, also when Ctrl-C ended a capture; 1: it failed, with the reason on stderr; 2: the
command line is not one; 3: there are packets, but a part of the capture is missing (stderr says
which).";

const CAPTURE_EXAMPLES: &str = "\
Targets:
  pod/NAME                       one pod; with -c one of its containers
  deploy/NAME sts/NAME ds/NAME   the pods of a workload, also job/NAME and rs/NAME, and those that
                                 it gets while the capture runs
  svc/NAME                       the pods behind a service
  -l app=cart                    pods by their labels
  node/NAME                      a node's own interfaces: needs a right in the whole cluster

Examples:
  kubectl remora capture pod/cart-7d9 -c sidecar -w sidecar.pcapng
  kubectl remora capture sts/db --look-back 30s -a duration:60 -w db.pcapng tcp port 5432
  kubectl remora capture node/worker-1 -s 96 --count 1000 -w - | tshark -r -
  kubectl remora capture ds/dns --store --reason 'odd DNS'

Ctrl-C ends a capture in order: the last packets and the counts are still written. A second one
ends at once.";

/// The command line of `kubectl remora`.
#[derive(Debug, Parser)]
#[command(name = "kubectl-remora", bin_name = "kubectl remora", version, about = ABOUT,
          after_help = EXAMPLES)]
pub(crate) struct KubeArgs {
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster, as whom, by which way: kubectl's flags, and ours.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArgs {
    /// Namespace of the target; without it the context's.
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Path of the kubeconfig file, instead of those of KUBECONFIG or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Cluster of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// User of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Address of the API server.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Bearer token, for the API server and the controller.
    #[arg(long, global = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// User to act as. Refused: the controller knows callers by their token alone.
    #[arg(long = "as", global = true, value_name = "NAME")]
    pub(crate) act_as: Option<String>,
    /// Group to act as; see --as.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) as_group: Vec<String>,
    /// UID to act as; see --as.
    #[arg(long, global = true, value_name = "UID")]
    pub(crate) as_uid: Option<String>,
    /// Certificate authority of the API server (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) certificate_authority: Option<PathBuf>,
    /// Client certificate for the API server (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) client_certificate: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) client_key: Option<PathBuf>,
    /// Do not check the API server's certificate. The controller's is checked all the same.
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub(crate) insecure_skip_tls_verify: Option<bool>,
    /// Name that the API server's certificate has.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) tls_server_name: Option<String>,
    /// How long one answer may take (30s, 2m); 0: as long as it likes. A capture may run longer.
    #[arg(long, global = true, value_name = "TIME", value_parser = request_timeout)]
    pub(crate) request_timeout: Option<RequestTimeout>,
    /// The controller itself, without the API server between.
    #[arg(
        long,
        global = true,
        env = "REMORA_CONTROLLER",
        value_name = "https://HOST:PORT|unix:PATH"
    )]
    pub(crate) controller: Option<ControllerAddress>,
    /// Namespace that Remora is installed in.
    #[arg(
        long,
        global = true,
        env = "REMORA_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "remora"
    )]
    pub(crate) remora_namespace: String,
    /// Certificate authority of the controller (PEM), instead of that of the ConfigMap remora-ca.
    #[arg(long, global = true, env = "REMORA_CA", value_name = "FILE")]
    pub(crate) remora_ca: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ignored: Ignored,
}

/// What kubectl takes everywhere and has no meaning here.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Ignored {
    #[arg(long, global = true, hide = true, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    #[arg(long, short, global = true, hide = true, value_name = "LEVEL")]
    v: Option<u8>,
    #[arg(long, global = true, hide = true, value_name = "BOOL", num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    warnings_as_errors: Option<bool>,
    #[arg(long, global = true, hide = true, value_name = "BOOL", num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    match_server_version: Option<bool>,
    #[arg(long, global = true, hide = true, value_name = "BOOL", num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    disable_compression: Option<bool>,
}

/// How long one answer may take; `None`: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestTimeout(pub(crate) Option<Duration>);

fn request_timeout(text: &str) -> anyhow::Result<RequestTimeout> {
    let duration = options::duration(text)?;
    Ok(RequestTimeout((!duration.is_zero()).then_some(duration)))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Capture packets of pods, on all their nodes, into one file.
    Capture(Box<KubeCaptureArgs>),
    /// List captures that run in the namespace.
    List {
        /// Finished captures too.
        #[arg(long, short)]
        all: bool,
        /// Of all namespaces, and of nodes.
        #[arg(long, short = 'A', conflicts_with = "namespace")]
        all_namespaces: bool,
        /// How to print them.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Show all that is known of one capture, and of each of its parts.
    Show {
        id: CaptureId,
        /// How to print it.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Copy a stored capture's packets into one file; a running one is followed to its end.
    Get {
        id: CaptureId,
        /// The file to write; `-` is standard output.
        #[arg(short, long, value_name = "FILE")]
        write: PathBuf,
    },
    /// Stop captures and show their final counts.
    Stop {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<CaptureId>,
    },
    /// Delete finished captures that the nodes keep. Their manifests stay, and signed tombstones say when, by whom
    /// and why.
    Delete {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<CaptureId>,
        /// Why, for the tombstones.
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        reason: String,
        /// Delete also what is not in its sink yet, and will be nowhere then.
        #[arg(long)]
        not_uploaded: bool,
    },
    /// Hold a capture that the nodes keep: nobody deletes it until it is released.
    Hold {
        id: CaptureId,
        /// Why, for whoever meets the hold.
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        reason: String,
    },
    /// Let a held capture go.
    Release { id: CaptureId },
    /// Show the nodes and their agents.
    Status {
        /// How to print it.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Try each step on the way to a capture, and say what is missing.
    Doctor,
    /// Print completions for a shell.
    Completions { shell: Shell },
    #[command(name = "__complete", hide = true)]
    Complete {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

#[derive(Debug, Args)]
#[command(
    override_usage = "kubectl remora capture [OPTIONS] TARGET [FILTER…]\n       \
                      kubectl remora capture [OPTIONS] -l LABELS [FILTER…]",
    after_help = CAPTURE_EXAMPLES
)]
pub(crate) struct KubeCaptureArgs {
    /// TARGET (see below), then the filter's words if there is no -f.
    #[arg(value_name = "WORDS")]
    pub(crate) words: Vec<String>,
    /// Pods by their labels, in kubectl's words: app=cart,tier!=cache.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// One container of the pod. The number of packets is --count.
    #[arg(short, long, value_name = "CONTAINER", value_parser = container)]
    pub(crate) container: Option<String>,
    /// Only the pods that are there now: what comes later does not join.
    #[arg(long)]
    pub(crate) fixed: bool,
    /// The pcapng file to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
    /// End each pod's part after so many packets.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<NonZeroU64>,
    #[command(flatten)]
    pub(crate) options: CaptureOptions,
    /// Keep the capture on its nodes, print its id and return. With -w keep it beside the file: then
    /// it survives the end of the connection.
    #[arg(long)]
    pub(crate) store: bool,
    /// Upload the stored files to a sink that the controllers know by this name, once the capture has ended.
    #[arg(long, value_name = "NAME", requires = "store")]
    pub(crate) destination: Option<SinkName>,
    /// Compress the stored files (.pcapng.zst). A file of -w is when its name ends in .zst.
    #[arg(long, requires = "store", conflicts_with = "write")]
    pub(crate) compress: bool,
    /// Wait for the end of the stored capture; Ctrl-C stops it.
    #[arg(long, requires = "store", conflicts_with = "write")]
    pub(crate) wait: bool,
}

/// Whoever types tcpdump's `-c 100` does not mean a container.
fn container(text: &str) -> anyhow::Result<String> {
    anyhow::ensure!(
        text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()),
        "-c names a container here; for a number of packets use --count {text}"
    );
    Ok(text.to_owned())
}
