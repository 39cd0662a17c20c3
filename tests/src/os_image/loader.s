# A BIOS boot loader for images of the lab: a boot sector and a second stage that load a kernel and an initrd from fixed places of
# the disk by the kernel's boot protocol (Documentation/x86/boot.rst), with the EDD services of int 13h.
#
# Real mode: boot sector at 0x7c00 with the stack below it, second stage at 0x8000, the kernel's real-mode part at 0x10000 with its
# stack and command line above, a buffer at 0x20000. The rest of the kernel goes to 1 MiB, the initrd to 128 MiB.

    .pushsection .rodata.muster_lab_loader, "a"
    .globl muster_lab_loader
    .balign 16
muster_lab_loader:
    .code16

    .set sector, muster_lab_loader - 0x7c00
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    cld
    ljmp $0, $(begun - sector)
begun:
    movw $(stage_packet - sector), %si
    movb $0x42, %ah
    int $0x13
    jc unreadable
    ljmp $0, $0x8000
unreadable:
    int $0x18                           # the BIOS goes on to the next device
stage_packet:
    .byte 16, 0
    .word 8, 0x8000, 0                  # sectors, offset, segment
    .quad 34                            # the first sector behind the GPT

    .org muster_lab_loader + 440
stage:
    .set base, stage - 0x8000
    jmp start
    .org stage + 8
kernel_sector: .long 0                  # filled in where the image is made, as is the command line
kernel_bytes:  .long 0
initrd_sector: .long 0
initrd_bytes:  .long 0
command_line:  .fill 1024, 1, 0

start:
    movb %dl, drive - base
    movw $(hello - base), %si
    call print
    movw $0x1000, %bx                   # the kernel's real-mode part: its size stands in its first sector
    movw %bx, %fs
    movl kernel_sector - base, %eax
    movl $1, %ecx
    call read_sectors
    movzbl %fs:0x1f1, %ecx
    testb %cl, %cl
    jnz 1f
    movb $4, %cl
1:  incl %ecx
    call read_sectors
    cmpl $0x53726448, %fs:0x202         # "HdrS"
    jne no_kernel

    addl %ecx, %eax                     # the rest of it
    shll $9, %ecx
    movl kernel_bytes - base, %edx
    subl %ecx, %edx
    movl %edx, %ecx
    movl $0x100000, %edi
    call load_high
    movl initrd_sector - base, %eax
    movl initrd_bytes - base, %ecx
    movl $0x8000000, %edi
    call load_high

    movb $0xff, %fs:0x210               # type_of_loader: none that has a number
    orb $0x80, %fs:0x211                # loadflags: CAN_USE_HEAP
    movl $0x8000000, %fs:0x218          # ramdisk_image
    movl initrd_bytes - base, %eax
    movl %eax, %fs:0x21c                # ramdisk_size
    movw $0xde00, %fs:0x224             # heap_end_ptr, counted from 0x200
    movl $0x1e000, %fs:0x228            # cmd_line_ptr
    movw $0x1000, %ax
    movw %ax, %es
    movw $0xe000, %di
    movw $(command_line - base), %si
    movw $1024, %cx
    rep movsb
    cli
    movw %ax, %ds
    movw %ax, %gs
    movw %ax, %ss
    movw $0xe000, %sp
    ljmp $0x1020, $0

# Reads %ecx sectors from sector %eax to %bx:0. Not called `read`: a linker that sees the whole program takes it for libc's.
read_sectors:
    pushal
    movw %cx, packet_sectors - base
    movw %bx, packet_segment - base
    movl %eax, packet_first - base
    movw $(packet - base), %si
    movb drive - base, %dl
    movb $0x42, %ah
    int $0x13
    jc no_disk
    popal
    ret

# Loads %ecx bytes (at least one) from sector %eax to the address %edi, through the buffer.
load_high:
    movl %ecx, %edx
    addl $511, %edx
    shrl $9, %edx
    cmpl $64, %edx
    jbe 1f
    movl $64, %edx
1:  pushl %ecx
    movl %edx, %ecx
    movw $0x2000, %bx
    call read_sectors
    popl %ecx
    pushal
    movl %edi, %ebx
    movw %bx, target_low - base
    shrl $16, %ebx
    movb %bl, target_middle - base
    movb %bh, target_high - base
    movw %dx, %cx                       # words: 256 a sector
    shlw $8, %cx
    xorw %si, %si
    movw %si, %es
    movw $(descriptors - base), %si
    movb $0x87, %ah
    int $0x15
    jc no_memory
    popal
    addl %edx, %eax
    shll $9, %edx
    addl %edx, %edi
    subl %edx, %ecx
    ja load_high
    ret

no_kernel:
    movw $(not_there - base), %si
    jmp give_up
no_disk:
    movw $(not_read - base), %si
    jmp give_up
no_memory:
    movw $(not_moved - base), %si
give_up:
    call print
    int $0x18

print:
    lodsb
    testb %al, %al
    jz 1f
    movb $0x0e, %ah
    movw $7, %bx
    int $0x10
    jmp print
1:  ret

hello:     .asciz "lab loader\r\n"
not_there: .asciz "no kernel\r\n"
not_read:  .asciz "cannot read the disk\r\n"
not_moved: .asciz "cannot write to memory\r\n"
drive:     .byte 0
    .balign 4
packet:                                 # of int 13h, function 42h
    .byte 16, 0
packet_sectors: .word 0
    .word 0
packet_segment: .word 0
packet_first: .quad 0
    .balign 8
descriptors:                            # of int 15h, function 87h: the third is the source, the fourth the target
    .fill 16, 1, 0
    .byte 0xff, 0xff, 0, 0, 2, 0x93, 0, 0
    .byte 0xff, 0xff
target_low: .word 0
target_middle: .byte 0
    .byte 0x93, 0
target_high: .byte 0
    .fill 16, 1, 0

    .org stage + 4096
    .code64
    .popsection
