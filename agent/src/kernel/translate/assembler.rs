//! Instructions with jumps to places that are not written yet.

use super::{
    Refused,
    insn::{Insn, Jump, Operand, Reg, jump, jump_if, jump32_if},
};

/// Most instructions of one program (`BPF_COMPLEXITY_LIMIT_INSNS`, linux/bpf_verifier.h, v6.18).
const LENGTH_MAX: usize = 1_000_000;

/// A place to jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<Insn>,
    /// Where each label is, once it is bound.
    places: Vec<Option<usize>>,
    /// Jumps, and where to.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// `label` is here.
    pub(super) fn bind(&mut self, label: Label) {
        debug_assert_eq!(self.places[label.0], None);
        self.places[label.0] = Some(self.code.len());
    }

    pub(super) fn emit(&mut self, insn: Insn) {
        self.code.push(insn);
    }

    pub(super) fn emit_all(&mut self, insns: &[Insn]) {
        self.code.extend_from_slice(insns);
    }

    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(jump(0));
    }

    pub(super) fn jump_if(
        &mut self,
        comparison: Jump,
        dst: Reg,
        operand: impl Into<Operand>,
        to: Label,
    ) {
        self.jumps.push((self.code.len(), to));
        self.emit(jump_if(comparison, dst, operand, 0));
    }

    pub(super) fn jump32_if(
        &mut self,
        comparison: Jump,
        dst: Reg,
        operand: impl Into<Operand>,
        to: Label,
    ) {
        self.jumps.push((self.code.len(), to));
        self.emit(jump32_if(comparison, dst, operand, 0));
    }

    /// # Errors
    /// There are too many instructions already.
    pub(super) fn check_length(&self) -> Result<(), Refused> {
        if self.code.len() > LENGTH_MAX {
            return Err(Refused::TooLong);
        }
        Ok(())
    }

    /// The instructions, with every jump's distance.
    ///
    /// # Errors
    /// A distance does not fit into 16 bits, or there are too many instructions.
    pub(super) fn finish(mut self) -> Result<Vec<Insn>, Refused> {
        self.check_length()?;
        for (at, label) in self.jumps {
            let place = self.places[label.0].expect("every label that is jumped to is bound");
            let distance = place as i64 - at as i64 - 1;
            self.code[at].offset = i16::try_from(distance).or(Err(Refused::TooLong))?;
        }
        Ok(self.code)
    }
}
