//! The grammar that Wireshark speaks to an extcap program, and the arguments that it fills in.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser};

const ABOUT: &str = "Wireshark's way to Remora: an external capture program (extcap)";

const INSTALL: &str = "\
To install: link this program as `remoradump` into the folder that Wireshark shows as \"Personal Extcap
path\" (Help, About, Folders; ~/.config/wireshark/extcap for most), or run `remora extcap --install`.

  tshark -i remora -o extcap.remora.target:pod/cart-7d9 -o extcap.remora.namespace:shop
  tshark -i remoranode -o extcap.remoranode.target:unit:nginx.service -f 'tcp port 80'";

#[derive(Debug, Parser)]
#[command(name = "remoradump", bin_name = "remoradump", disable_version_flag = true, about = ABOUT,
          after_help = INSTALL)]
#[command(group(ArgGroup::new("what").required(true).multiple(true).args(
    ["extcap_interfaces", "extcap_dlts", "extcap_config", "capture", "extcap_capture_filter",
     "extcap_version", "install", "version"])))]
pub(crate) struct ExtcapArgs {
    /// Print the interfaces.
    #[arg(long)]
    pub(super) extcap_interfaces: bool,
    /// Print an interface's link type.
    #[arg(long, requires = "extcap_interface")]
    pub(super) extcap_dlts: bool,
    /// Print what an interface can be told.
    #[arg(long, requires = "extcap_interface")]
    pub(super) extcap_config: bool,
    /// Capture.
    #[arg(long, requires_all = ["extcap_interface", "fifo"])]
    pub(super) capture: bool,
    /// The interface.
    #[arg(long, value_name = "NAME")]
    pub(super) extcap_interface: Option<String>,
    /// The filter; without --capture it is only checked.
    #[arg(long, value_name = "FILTER")]
    pub(super) extcap_capture_filter: Option<String>,
    /// Where the packets go.
    #[arg(long, value_name = "FILE")]
    pub(super) fifo: Option<PathBuf>,
    /// Wireshark's version; alone: print ours.
    #[arg(long, value_name = "VERSION", num_args = 0..=1, default_missing_value = "")]
    pub(super) extcap_version: Option<String>,
    /// Print our version.
    #[arg(long, short = 'V')]
    pub(super) version: bool,
    /// Make the link in Wireshark's personal folder.
    #[arg(long)]
    pub(super) install: bool,

    /// What to capture.
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true)]
    pub(super) target: Option<String>,
    #[arg(long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,
    #[arg(long, value_name = "CONTAINER")]
    pub(super) container: Option<String>,
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    #[arg(long, value_name = "NAME")]
    pub(super) context: Option<String>,
    #[arg(long, value_name = "unix:PATH")]
    pub(super) agent: Option<String>,
    #[arg(long, value_name = "TIME")]
    pub(super) look_back: Option<String>,
    #[arg(long, value_name = "BYTES")]
    pub(super) snaplen: Option<u32>,
    #[arg(long)]
    pub(super) segment: bool,
    #[arg(long)]
    pub(super) fixed: bool,

    #[command(flatten)]
    ignored: Ignored,
}

/// Of toolbars and of lists that are read again, which there are none of.
#[derive(Debug, Args)]
struct Ignored {
    #[arg(long, hide = true)]
    extcap_control_in: Option<PathBuf>,
    #[arg(long, hide = true)]
    extcap_control_out: Option<PathBuf>,
    #[arg(long, hide = true)]
    extcap_reload_option: Option<String>,
}
