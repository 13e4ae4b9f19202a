//! From pcap-filter text to programs.
//!
//! Text is bounded first (`bounds`), then compiled by libpcap, the only one that knows the whole
//! language, for each link type. libpcap looks names up while it compiles, so where no lookup may
//! happen, text with names is refused before libpcap sees it (`names`).

mod bounds;
mod keywords;
#[cfg(feature = "libpcap")]
mod libpcap;
#[cfg(any(feature = "libpcap", test))]
mod names;
mod tokens;

#[cfg(test)]
mod tests;

use super::{
    FilterError, FilterErrorKind,
    program::{LinkType, Program, Programs},
};

pub(super) use bounds::admit;
pub use bounds::{NESTING_MAX, TOKENS_MAX, VALUES_MAX};

/// Compiles pcap-filter text that [`admit`] let in.
pub trait Compile: Send + Sync {
    /// # Errors
    /// The text is none, asks for what packets of the link type do not have, or makes a program
    /// that is not let in. [`FilterErrorKind::MatchesNothing`]: no such packet can match.
    fn compile(&self, text: &str, link: LinkType) -> Result<Program, FilterError>;
}

/// What becomes of names of hosts, networks, ports and protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// As tcpdump does it: by DNS and the files in `/etc`. Blocks for as long as that takes.
    LookedUp,
    /// Text that has any is refused: nothing is looked up.
    Refused,
}

/// The compiler of this build: libpcap, or without it one that refuses all that is not typed terms.
#[must_use]
pub fn compiler(names: Names) -> &'static dyn Compile {
    #[cfg(feature = "libpcap")]
    return libpcap::Libpcap::of(names);
    #[cfg(not(feature = "libpcap"))]
    {
        let _nothing_to_look_up_with = names;
        &TypedOnly
    }
}

#[cfg(not(feature = "libpcap"))]
struct TypedOnly;

#[cfg(not(feature = "libpcap"))]
impl Compile for TypedOnly {
    fn compile(&self, text: &str, _link: LinkType) -> Result<Program, FilterError> {
        // What the typed parser does not understand, this build does not either.
        super::parse::parse(text)?;
        Err(FilterError {
            position: 0,
            len: 0,
            kind: FilterErrorKind::NoCompiler,
        })
    }
}

impl Programs {
    /// The programs of any text, also of one that terms could say.
    ///
    /// # Errors
    /// It is no filter, breaks a bound, or no packet can match.
    pub fn compile(text: &str, compiler: &dyn Compile) -> Result<Self, FilterError> {
        admit(text)?;
        programs(text, compiler)
    }
}

/// The programs of `text`, which is [admitted](admit).
pub(super) fn programs(text: &str, compiler: &dyn Compile) -> Result<Programs, FilterError> {
    let nothing = |error: &FilterError| error.kind == FilterErrorKind::MatchesNothing;
    let ethernet = compiler.compile(text, LinkType::Ethernet);
    let raw = if tokens::reads_link_layer(text) {
        None
    } else {
        match compiler.compile(text, LinkType::Raw) {
            Ok(program) => Some(program),
            Err(error) if nothing(&error) => Some(Program::reject_all()),
            // Ethernet's error, if there is one, says more.
            Err(_not_of_this_link_type) => None,
        }
    };
    let rejects_all = Program::reject_all();
    let ethernet = match ethernet {
        Err(error) if nothing(&error) && raw.as_ref().is_some_and(|raw| *raw != rejects_all) => {
            rejects_all
        }
        other => other?,
    };
    Ok(Programs { ethernet, raw })
}
