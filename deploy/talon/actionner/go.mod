module remora.dev/talon/capture

go 1.22
