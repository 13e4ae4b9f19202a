//! The programs that others call: see `remora_agent_common::stage`.

use std::fmt;

use aya::{
    Ebpf,
    maps::{MapData, ProgramArray},
};
use remora_agent_common::stage::STAGES;

use super::{KernelError, load::take_map};

/// By their index in the stage arrays.
pub(super) const TC_STAGES: [&str; STAGES as usize] = ["tc_decide", "tc_capture", "tc_look_back"];
pub(super) const CGROUP_STAGES: [&str; 2] = ["cgroup_decide", "cgroup_capture"];

/// The arrays. To be kept: the kernel empties one whose last descriptor in user space is closed.
pub(super) struct Stages {
    _arrays: [ProgramArray<MapData>; 2],
}

impl fmt::Debug for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stages").finish_non_exhaustive()
    }
}

impl Stages {
    /// Fills the arrays with the loaded programs.
    pub(super) fn set(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let arrays = [
            fill(ebpf, "TC_STAGES", TC_STAGES)?,
            fill(ebpf, "CGROUP_STAGES", CGROUP_STAGES)?,
        ];
        Ok(Self { _arrays: arrays })
    }
}

fn fill(
    ebpf: &mut Ebpf,
    map: &'static str,
    programs: impl IntoIterator<Item = &'static str>,
) -> Result<ProgramArray<MapData>, KernelError> {
    let failed = |source| KernelError::Map {
        name: map,
        source: Box::new(source),
    };
    let mut array = ProgramArray::try_from(take_map(ebpf, map)?).map_err(failed)?;
    for (index, name) in (0..).zip(programs) {
        let program = ebpf.program(name).ok_or(KernelError::Missing(name))?;
        let fd = program
            .fd()
            .map_err(|error| KernelError::from_program(name, error))?;
        array.set(index, fd, 0).map_err(failed)?;
    }
    Ok(array)
}
