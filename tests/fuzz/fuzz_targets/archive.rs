#![cfg_attr(fuzzing, no_main)]

remora_fuzz::target!(archive);
