//! The programs that others call: see `remora_agent_common::stage`.

use aya::{
    Ebpf,
    maps::{Map, ProgramArray},
};
use remora_agent_common::stage::STAGES;

use super::{KernelError, load::take_map, program::CallTable};

/// By their index in the stage arrays.
pub(super) const TC_STAGES: [&str; STAGES as usize] = [
    "tc_decide",
    "tc_capture",
    "tc_capture_headers",
    "tc_look_back",
    "tc_look_back_headers",
];
pub(super) const CGROUP_STAGES: [&str; 3] =
    ["cgroup_decide", "cgroup_capture", "cgroup_capture_headers"];

/// The arrays.
#[derive(Debug)]
pub(super) struct Stages {
    pub(super) tc: CallTable,
    pub(super) cgroup: CallTable,
}

impl Stages {
    /// Fills the arrays with the loaded programs.
    pub(super) fn set(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            tc: fill(ebpf, "TC_STAGES", TC_STAGES)?,
            cgroup: fill(ebpf, "CGROUP_STAGES", CGROUP_STAGES)?,
        })
    }
}

fn fill(
    ebpf: &mut Ebpf,
    map: &'static str,
    programs: impl IntoIterator<Item = &'static str>,
) -> Result<CallTable, KernelError> {
    let failed = |source| KernelError::Map {
        name: map,
        source: Box::new(source),
    };
    let taken = take_map(ebpf, map)?;
    let table = call_table(map, &taken)?;
    let mut array = ProgramArray::try_from(taken).map_err(failed)?;
    for (index, name) in (0..).zip(programs) {
        let program = ebpf.program(name).ok_or(KernelError::Missing(name))?;
        let fd = program
            .fd()
            .map_err(|error| KernelError::from_program(name, error))?;
        array.set(index, fd, 0).map_err(failed)?;
    }
    Ok(table)
}

pub(super) fn call_table(name: &'static str, map: &Map) -> Result<CallTable, KernelError> {
    CallTable::of(map)
        .map_err(|error| KernelError::Io("keep a map of programs", error))?
        .ok_or(KernelError::Missing(name))
}
