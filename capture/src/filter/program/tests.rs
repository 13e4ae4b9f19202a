use super::*;

fn instruction((code, jt, jf, k): (u16, u8, u8, u32)) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn program(rows: &[(u16, u8, u8, u32)]) -> Result<Program, ProgramError> {
    Program::new(rows.iter().copied().map(instruction).collect::<Vec<_>>())
}

fn returned(rows: &[(u16, u8, u8, u32)], bytes: &[u8]) -> u32 {
    let program = program(rows).expect("valid");
    interpret::run(program.instructions(), Frame::whole(bytes))
}

const TAKE: (u16, u8, u8, u32) = (0x06, 0, 0, 262_144);
const RETURN_A: (u16, u8, u8, u32) = (0x16, 0, 0, 0);

#[test]
fn programs_that_could_do_harm_are_refused_where_they_do() {
    use ProgramError as E;
    for (rows, error) in [
        (vec![], E::Length(0)),
        (vec![TAKE; 4097], E::Length(4097)),
        // An unknown code, extended BPF's exit, a load of 8 bytes.
        (vec![(0xff, 0, 0, 0), TAKE], E::Code { at: 0, code: 0xff }),
        (vec![TAKE, (0x95, 0, 0, 0)], E::Code { at: 1, code: 0x95 }),
        (vec![(0x38, 0, 0, 0), TAKE], E::Code { at: 0, code: 0x38 }),
        (
            vec![(0x8020, 0, 0, 0), TAKE],
            E::Code {
                at: 0,
                code: 0x8020,
            },
        ),
        // Jumps: backward (-1, and libpcap's `protochain`), one beyond the end, far beyond.
        (vec![TAKE, (0x05, 0, 0, u32::MAX), TAKE], E::Jump(1)),
        (
            vec![TAKE, (0x05, 0, 0, (-2i32).cast_unsigned()), TAKE],
            E::Jump(1),
        ),
        (vec![(0x05, 0, 0, 1), TAKE], E::Jump(0)),
        (vec![(0x15, 1, 0, 0), TAKE], E::Jump(0)),
        (vec![(0x15, 0, 1, 0), TAKE], E::Jump(0)),
        (vec![(0x1d, 255, 255, 0), TAKE], E::Jump(0)),
        (vec![(0x20, 0, 0, 0)], E::NoReturn),
        (vec![TAKE, (0x87, 0, 0, 0)], E::NoReturn),
        // Scratch memory: out of range to write and to read, or never written.
        (vec![(0x02, 0, 0, 16), TAKE], E::Cell { at: 0, cell: 16 }),
        (
            vec![(0x61, 0, 0, u32::MAX), TAKE],
            E::Cell {
                at: 0,
                cell: u32::MAX,
            },
        ),
        (vec![(0x60, 0, 0, 0), TAKE], E::Unset(0)),
        // Written on one of two ways.
        (
            vec![(0x15, 1, 0, 0), (0x02, 0, 0, 3), (0x60, 0, 0, 3), TAKE],
            E::Unset(2),
        ),
        (vec![(0x34, 0, 0, 0), TAKE], E::DivisionByZero(0)),
        (vec![(0x94, 0, 0, 0), TAKE], E::DivisionByZero(0)),
        (vec![(0x64, 0, 0, 32), TAKE], E::Shift { at: 0, bits: 32 }),
        (vec![(0x74, 0, 0, 255), TAKE], E::Shift { at: 0, bits: 255 }),
        // Linux' extensions: packet type, random number; link and network layer.
        (vec![(0x28, 0, 0, 0xffff_f004), TAKE], E::NotOfThePacket(0)),
        (vec![(0x20, 0, 0, 0xffff_f038), TAKE], E::NotOfThePacket(0)),
        (vec![(0x50, 0, 0, 0xfff0_0000), TAKE], E::NotOfThePacket(0)),
        (vec![(0xb1, 0, 0, 0xffe0_0000), TAKE], E::NotOfThePacket(0)),
    ] {
        assert_eq!(program(&rows), Err(error), "{rows:?}");
    }
}

#[test]
fn the_longest_program_and_the_farthest_jump_are_taken() {
    assert!(program(&[TAKE; PROGRAM_MAX]).is_ok());
    let mut rows = vec![(0x05, 0, 0, PROGRAM_MAX as u32 - 2)];
    rows.extend([(0x16, 0, 0, 0); PROGRAM_MAX - 2]);
    rows.push(TAKE);
    let far = program(&rows).expect("valid");
    assert!(far.run(Frame::whole(&[])));
}

#[test]
fn a_cell_that_every_way_sets_may_be_read() {
    let rows = [
        (0x20, 0, 0, 0),
        (0x15, 2, 0, 7),
        (0x02, 0, 0, 15),
        (0x05, 0, 0, 1),
        (0x03, 0, 0, 15),
        (0x60, 0, 0, 15),
        RETURN_A,
    ];
    assert_eq!(returned(&rows, &[0, 0, 0, 9]), 9);
    assert_eq!(returned(&rows, &[0, 0, 0, 7]), 0, "X was stored");
}

#[test]
fn a_load_beyond_the_packet_refuses_it() {
    let bytes = [1, 2, 3, 4, 5];
    for (code, fits, beyond) in [(0x20, 1, 2), (0x28, 3, 4), (0x30, 4, 5)] {
        for index in 0..=fits {
            let indexed = [(0x01, 0, 0, index), (code + 0x20, 0, 0, fits - index), TAKE];
            assert_eq!(returned(&indexed, &bytes), TAKE.3, "{indexed:?}");
        }
        assert_eq!(returned(&[(code, 0, 0, fits), TAKE], &bytes), TAKE.3);
        assert_eq!(returned(&[(code, 0, 0, beyond), TAKE], &bytes), 0);
        assert_eq!(returned(&[(code, 0, 0, i32::MAX as u32), TAKE], &bytes), 0);
    }
    // X + k does not wrap around to the packet's beginning.
    let wraps = [(0x01, 0, 0, u32::MAX), (0x50, 0, 0, 1), TAKE];
    assert_eq!(returned(&wraps, &bytes), 0);
    assert_eq!(returned(&[(0xb1, 0, 0, 5), TAKE], &bytes), 0);
}

#[test]
fn arithmetic_is_that_of_32_bits_and_of_libpcap() {
    let with_x = |code, a, x| {
        returned(
            &[(0x01, 0, 0, x), (0x00, 0, 0, a), (code, 0, 0, 0), RETURN_A],
            &[],
        )
    };
    assert_eq!(with_x(0x0c, u32::MAX, 2), 1);
    assert_eq!(with_x(0x1c, 1, 2), u32::MAX);
    assert_eq!(with_x(0x2c, 1 << 31, 3), 1 << 31);
    assert_eq!(with_x(0x3c, 7, 2), 3);
    assert_eq!(with_x(0x9c, 7, 4), 3);
    assert_eq!(with_x(0x3c, 7, 0), 0, "the packet is refused");
    assert_eq!(with_x(0x9c, 7, 0), 0, "the packet is refused");
    assert_eq!(with_x(0xac, 0b101, 0b110), 0b011);
    assert_eq!(with_x(0x6c, 1, 31), 1 << 31);
    assert_eq!(with_x(0x6c, 1, 32), 0);
    assert_eq!(with_x(0x7c, u32::MAX, 33), 0);
    assert_eq!(with_x(0x84, 1, 0), u32::MAX);
    assert_eq!(
        returned(&[(0x87, 0, 0, 0), RETURN_A], &[]),
        0,
        "X begins as 0"
    );
}

#[test]
fn comparisons_are_unsigned() {
    let holds = |code, a, k| {
        returned(
            &[
                (0x00, 0, 0, a),
                (code, 0, 1, k),
                (0x06, 0, 0, 1),
                (0x06, 0, 0, 2),
            ],
            &[],
        ) == 1
    };
    assert!(holds(0x25, u32::MAX, 1));
    assert!(!holds(0x25, 1, 1));
    assert!(holds(0x35, 1, 1));
    assert!(holds(0x45, 0b110, 0b011));
    assert!(!holds(0x45, 0b100, 0b011));
    assert!(holds(0x15, 5, 5));
}

#[test]
fn length_is_that_of_the_frame_in_the_file() {
    let length = program(&[(0x80, 0, 0, 0), RETURN_A]).expect("valid");
    let run = |frame| interpret::run(length.instructions(), frame);
    assert_eq!(run(Frame::whole(&[0; 60])), 60);
    assert_eq!(run(Frame::network(&[0; 60])), 74);
}

#[test]
fn a_program_goes_over_the_wire_in_8_bytes_an_instruction() {
    let program = program(&[
        (0x28, 0, 0, 12),
        (0x15, 0, 1, 0x0800),
        TAKE,
        (0x06, 0, 0, 0),
    ])
    .expect("valid");
    let bytes = program.to_bytes();
    assert_eq!(&bytes[8..16], [0x15, 0, 0, 1, 0x00, 0x08, 0, 0]);
    assert_eq!(Program::from_bytes(&bytes), Ok(program));
    assert_eq!(
        Program::from_bytes(&bytes[..31]),
        Err(ProgramError::Torn(31))
    );
    assert_eq!(Program::from_bytes(&[]), Err(ProgramError::Length(0)));
    assert_eq!(
        Program::from_bytes(&[0; 8 * 4097]),
        Err(ProgramError::Length(4097))
    );
}
