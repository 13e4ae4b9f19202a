//! `kubectl remora` against scripted controllers, by a socket and through an API server.

mod api;
mod capture;
mod commands;
mod controller;
mod forwarded;
mod wireshark;
