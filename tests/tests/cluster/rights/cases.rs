//! The table: callers and calls, the answer that each gets, and the lines of it in the audit log.

use remora_capture::audit::Decision;
use remora_proto::reason::Reason;
use tonic::Code;

use Answer::{No, Says, Yes};
use Call::{Delete, Get, Hold, List, Read, Release, Start, Status, Stop, Watch};
use Decision::{Allowed, Done, Refused};

/// What is wanted. Captures and namespaces are by their names in [`Stage`](super::stage::Stage).
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// Of a target, in a namespace.
    Start(&'static str, &'static str),
    Get(&'static str),
    Watch(&'static str),
    Read(&'static str),
    Stop(&'static str),
    Delete(&'static str),
    Hold(&'static str),
    Release(&'static str),
    /// Of a namespace; empty: of all.
    List(&'static str),
    Status,
}

/// What comes of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Yes,
    /// A yes whose words contain this.
    Says(&'static str),
    /// The code, the stable reason and a part of the words.
    No(Code, Reason, &'static str),
}

/// A line of the audit log: who, what, the decision, and how its reason begins.
pub(super) type Line = (&'static str, &'static str, Decision, &'static str);

pub(super) struct Case {
    pub(super) name: &'static str,
    /// Of its credentials.
    pub(super) who: &'static str,
    pub(super) call: Call,
    pub(super) answer: Answer,
    pub(super) account: &'static [Line],
}

pub(super) const DENIED: Code = Code::PermissionDenied;
const UNKNOWN: Code = Code::Unauthenticated;

/// Users of accounts in the namespace `own`, as the table calls them; `{own}` is its name.
const fn case(
    name: &'static str,
    who: &'static str,
    call: Call,
    answer: Answer,
    account: &'static [Line],
) -> Case {
    Case {
        name,
        who,
        call,
        answer,
        account,
    }
}

const fn no(told: &'static str) -> Answer {
    No(DENIED, Reason::PermissionDenied, told)
}

const fn nobody(told: &'static str) -> Answer {
    No(UNKNOWN, Reason::PermissionDenied, told)
}

#[rustfmt::skip]
pub(super) const CASES: [Case; 51] = [
    // Nobody that the API server knows.
    case("no credentials", "nobody", Start("pod/cart", "own"), nobody("nobody is named"),
        &[("nobody", "call", Refused, "no_credentials")]),
    case("no credentials, though the group of such callers has the right", "nobody", List("free"), nobody("nobody is named"),
        &[("nobody", "call", Refused, "no_credentials")]),
    case("another scheme than Bearer", "basic", Start("pod/cart", "own"), nobody("not `Bearer TOKEN`"),
        &[("nobody", "call", Refused, "bad_header")]),
    case("a token of nobody", "garbage", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    case("an expired token of who has the right", "expired", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    case("a token that is not valid yet", "early", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    case("a token for another audience", "elsewhere", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    case("a token bound to what was deleted", "unbound", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    case("a token of an account that was made anew", "former", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    // Somebody without the right.
    case("no right", "mallory", Start("pod/cart", "own"), no("\"mallory\" may not create captures.remora.dev in namespace"),
        &[("mallory", "start", Refused, "not_allowed")]),
    case("no right, and a claim to be somebody else", "impersonator", Start("pod/cart", "own"), no("\"mallory\" may not create"),
        &[("mallory", "start", Refused, "not_allowed")]),
    case("no right to know of one", "mallory", Get("own"), no("may not get captures.remora.dev in namespace"),
        &[("mallory", "show", Refused, "not_allowed")]),
    case("the right in another namespace", "bob", Start("pod/cart", "own"), no("\"bob\" may not create captures.remora.dev in namespace"),
        &[("bob", "start", Refused, "not_allowed")]),
    case("the right in this namespace", "bob", Start("pod/cart", "other"), Yes,
        &[("bob", "start", Allowed, "")]),
    case("packets of another namespace", "bob", Read("own"), no("may not get captures.remora.dev/data in namespace"),
        &[("bob", "read", Refused, "not_allowed")]),
    case("the end of another namespace's capture", "bob", Stop("own"), no("may not update captures.remora.dev in namespace"),
        &[("bob", "stop", Refused, "not_allowed")]),
    // Parts of the right.
    case("a viewer starts", "viewer", Start("pod/cart", "own"), no("may not create captures.remora.dev"),
        &[("{own}:viewer", "start", Refused, "not_allowed")]),
    case("a viewer looks", "viewer", Get("own"), Yes,
        &[("{own}:viewer", "show", Allowed, "")]),
    case("a viewer follows", "viewer", Watch("own"), Yes,
        &[("{own}:viewer", "show", Allowed, "")]),
    case("a viewer lists", "viewer", List("own"), Yes,
        &[("{own}:viewer", "list", Allowed, "")]),
    case("a viewer lists another namespace", "viewer", List("other"), no("may not list captures.remora.dev"),
        &[("{own}:viewer", "list", Refused, "not_allowed")]),
    case("a viewer reads packets", "viewer", Read("own"), no("may not get captures.remora.dev/data"),
        &[("{own}:viewer", "read", Refused, "not_allowed")]),
    case("a viewer ends", "viewer", Stop("own"), no("may not update captures.remora.dev"),
        &[("{own}:viewer", "stop", Refused, "not_allowed")]),
    case("create without data: starts", "creator", Start("pod/cart", "own"), Yes,
        &[("{own}:creator", "start", Allowed, "")]),
    case("create without data: reads packets", "creator", Read("own"), no("may not get captures.remora.dev/data"),
        &[("{own}:creator", "read", Refused, "not_allowed")]),
    case("data without create: reads packets", "reader", Read("own"), Yes,
        &[("{own}:reader", "read", Allowed, ""), ("{own}:reader", "read", Done, "the reader went away")]),
    case("data without create: starts", "reader", Start("pod/cart", "own"), no("may not create captures.remora.dev"),
        &[("{own}:reader", "start", Refused, "not_allowed")]),
    case("data without get: looks", "reader", Get("own"), no("may not get captures.remora.dev in namespace"),
        &[("{own}:reader", "show", Refused, "not_allowed")]),
    // Ways to have it.
    case("an account that has it", "capturer", Start("pod/cart", "own"), Yes,
        &[("{own}:capturer", "start", Allowed, "")]),
    case("an account that has it, elsewhere", "capturer", Start("pod/cart", "other"), no("may not create captures.remora.dev"),
        &[("{own}:capturer", "start", Refused, "not_allowed")]),
    case("an account whose group has it", "plain", Start("pod/cart", "free"), Yes,
        &[("{own}:plain", "start", Allowed, "")]),
    case("a token bound to what is there", "bound", Start("pod/cart", "own"), Yes,
        &[("{own}:capturer", "start", Allowed, "")]),
    case("the cluster's administrator", "admin", Start("pod/cart", "own"), Yes,
        &[("admin", "start", Allowed, "")]),
    // More than one namespace, and none.
    // Two by a right of his own and by his group's; two not.
    case("all namespaces: what he may see of them", "viewer", List(""), Yes,
        &[("{own}:viewer", "list", Refused, "not_allowed"), ("{own}:viewer", "list", Allowed, ""), ("{own}:viewer", "list", Allowed, ""),
          ("{own}:viewer", "list", Refused, "not_allowed")]),
    case("a node, by a right in namespaces", "capturer", Start("node/node-a", ""), no("may not create captures.remora.dev in the whole cluster"),
        &[("{own}:capturer", "start", Refused, "not_allowed")]),
    case("a node, by a right in the cluster", "operator", Start("node/node-a", ""), Yes,
        &[("{own}:operator", "start", Allowed, "")]),
    case("a node's packets, by a right in namespaces", "capturer", Read("node"), no("may not get captures.remora.dev/data in the whole cluster"),
        &[("{own}:capturer", "read", Refused, "not_allowed")]),
    case("all nodes, by a right in a namespace", "viewer", Status, no("may not list captures.remora.dev in the whole cluster"),
        &[("{own}:viewer", "list", Refused, "not_allowed")]),
    case("all nodes, by a right in the cluster", "operator", Status, Yes,
        &[("{own}:operator", "list", Allowed, "")]),
    // Of what the nodes keep.
    case("who captures does not delete", "capturer", Delete("over"), no("may not delete captures.remora.dev/data in namespace"),
        &[("{own}:capturer", "delete", Refused, "not_allowed")]),
    case("who captures does not hold", "capturer", Hold("over"), no("may not create captures.remora.dev/hold in namespace"),
        &[("{own}:capturer", "hold", Refused, "not_allowed")]),
    case("a custodian holds", "custodian", Hold("over"), Says("by san=remora-controller"),
        &[("{own}:custodian", "hold", Allowed, "")]),
    case("what is held is not deleted", "custodian", Delete("over"),
        No(Code::FailedPrecondition, Reason::CaptureHeld, "custodian, by san=remora-controller"),
        &[("{own}:custodian", "delete", Allowed, "")]),
    case("who captures does not let go", "capturer", Release("over"), no("may not delete captures.remora.dev/hold in namespace"),
        &[("{own}:capturer", "release", Refused, "not_allowed")]),
    case("a custodian reads packets", "custodian", Read("over"), no("may not get captures.remora.dev/data in namespace"),
        &[("{own}:custodian", "read", Refused, "not_allowed")]),
    case("a custodian lets go", "custodian", Release("over"), Yes,
        &[("{own}:custodian", "release", Allowed, "")]),
    case("a custodian deletes what runs", "custodian", Delete("own"),
        No(Code::FailedPrecondition, Reason::CaptureRunning, "stop the capture first"),
        &[("{own}:custodian", "delete", Allowed, "")]),
    case("a custodian deletes", "custodian", Delete("over"), Says("chain_head"),
        &[("{own}:custodian", "delete", Allowed, "")]),
    // The namespaces' own levels: no right goes beyond.
    case("a namespace of headers", "operator", Start("pod/cart", "headers"), Yes,
        &[("{own}:operator", "start", Allowed, "")]),
    case("a namespace of nothing", "operator", Start("pod/cart", "none"), No(DENIED, Reason::NamespacePrivate, "has the privacy level `none`"),
        &[("{own}:operator", "start", Allowed, "")]),
    case("a namespace that is not there", "operator", Start("pod/cart", "gone"), No(Code::NotFound, Reason::TargetNotFound, "there is nothing in namespace `gone`"),
        &[("{own}:operator", "start", Allowed, "")]),
];
