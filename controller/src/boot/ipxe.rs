//! iPXE scripts, and the kernel's command line. Pure: made from values that cannot hold anything but what they are for,
//! so that no text of a stranger or of firmware can reach a script.

use std::net::SocketAddrV4;

use super::http::route::{Boot, Route};

/// What every kernel is told: to use both kinds of console and to say little there, because a serial line takes longer to print
/// a boot's messages than the boot itself; and not to test its ciphers (`crypto/algboss.c`), which is half of what an emulated
/// processor does until the agent starts: nothing in the ramdisk uses them; and to start the machine again a minute after a panic, or it
/// would stand there until somebody comes. A Segment's own parameters come after these and win.
pub const PARAMETERS: &str = "console=tty0 console=ttyS0,115200 quiet cryptomgr.notests panic=60";

/// The most characters that a Segment's parameters may have together, with the space before each. x86 takes 2047 (`COMMAND_LINE_SIZE`)
/// and cuts off the rest without a word; the kernel's name is what iPXE puts in front under UEFI.
pub const MAX_PARAMETERS: usize = 2047 - "vmlinuz initrd=initramfs ".len() - PARAMETERS.len();

/// How often iPXE tries to fetch the files before it goes on to the disk; it waits one second longer each time.
const TRIES: u32 = 3;

/// A kernel parameter that means nothing to iPXE, a UEFI stub or the kernel's own quoting: letters, digits and `_.,:=/@+-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter(String);

impl Parameter {
    /// The parameter, if it has no other signs and at most 128 of them.
    pub fn new(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.,:=/@+-".contains(&byte);
        let valid = (1..=128).contains(&text.len()) && text.bytes().all(plain);
        valid.then(|| Parameter(text.to_owned()))
    }
}

/// The kernel's command line.
pub fn command_line(parameters: &[Parameter]) -> String {
    parameters
        .iter()
        .fold(PARAMETERS.to_owned(), |line, parameter| line + " " + &parameter.0)
}

/// The script that boots the ramdisk: `server` has the files. If it cannot be fetched or booted, the machine goes on to its disk.
pub fn ramdisk(server: SocketAddrV4, boot: &Boot, parameters: &[Parameter]) -> String {
    let kernel = Route::Kernel(boot.release.clone());
    let initramfs = Route::Initramfs(boot.clone());
    let line = command_line(parameters);
    // UEFI: the kernel fetches its initrd from iPXE by the name on its command line. BIOS ignores it.
    format!(
        "#!ipxe\n\
         set try:int32 0\n\
         goto fetch\n\
         :again\n\
         imgfree\n\
         inc try\n\
         iseq ${{try}} {TRIES} && goto disk ||\n\
         echo Muster: the ramdisk did not arrive, trying again\n\
         sleep ${{try}}\n\
         :fetch\n\
         kernel http://{server}{kernel} initrd=initramfs {line} || goto again\n\
         initrd --name initramfs http://{server}{initramfs} || goto again\n\
         boot || goto again\n\
         :disk\n\
         {LEAVE}"
    )
}

/// The script that goes on to the machine's own disk. `why` is for who looks at the screen.
pub fn disk(why: &'static str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || " ,.:-".contains(*c);
    let why: String = why.chars().filter(plain).collect();
    format!("#!ipxe\necho Muster: {why}\n{LEAVE}")
}

/// Under UEFI only an error makes the firmware go on to its next boot entry; a BIOS goes on in any case.
const LEAVE: &str =
    "echo Muster: going on to the next boot device\niseq ${platform} efi && exit 1 || exit 0\n";

#[cfg(test)]
mod tests {
    use muster_proto::Mac;
    use proptest::prelude::*;

    use super::*;
    use crate::boot::http::route::SegmentKey;

    fn boot() -> Boot {
        Boot {
            release: "0123456789abcdef".parse().unwrap(),
            segment: SegmentKey::new("muster-system", "lab").unwrap(),
            mac: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            pass: "asD_7gABAgMEBQYHCAkKCwwNDg8QERIT".parse().unwrap(),
        }
    }

    fn server() -> SocketAddrV4 {
        "10.77.0.1:8080".parse().unwrap()
    }

    #[test]
    fn the_ramdisk_is_fetched_three_times_before_the_disk() {
        let parameters = [Parameter::new("console=ttyS1,115200").unwrap()];
        assert_eq!(
            ramdisk(server(), &boot(), &parameters),
            "#!ipxe
set try:int32 0
goto fetch
:again
imgfree
inc try
iseq ${try} 3 && goto disk ||
echo Muster: the ramdisk did not arrive, trying again
sleep ${try}
:fetch
kernel http://10.77.0.1:8080/boot/0123456789abcdef/vmlinuz initrd=initramfs console=tty0 console=ttyS0,115200 quiet cryptomgr.notests panic=60 console=ttyS1,115200 || goto again
initrd --name initramfs http://10.77.0.1:8080/boot/0123456789abcdef/muster-system/lab/525400123456/asD_7gABAgMEBQYHCAkKCwwNDg8QERIT/initramfs || goto again
boot || goto again
:disk
echo Muster: going on to the next boot device
iseq ${platform} efi && exit 1 || exit 0
"
        );
    }

    #[test]
    fn the_longest_command_line_is_one_that_the_kernel_takes_whole() {
        let script = ramdisk(server(), &boot(), &[]);
        let line = script
            .lines()
            .find_map(|line| line.strip_prefix("kernel "))
            .unwrap();
        let (_, line) = line
            .strip_suffix(" || goto again")
            .unwrap()
            .rsplit_once('/')
            .unwrap();
        assert!(line.starts_with("vmlinuz initrd="), "{line}");
        assert_eq!(line.len() + MAX_PARAMETERS, 2047);
        let one = [Parameter::new("a").unwrap()];
        assert_eq!(command_line(&one).len(), command_line(&[]).len() + " a".len());
    }

    #[test]
    fn the_disk_is_reached_on_both_firmwares() {
        assert_eq!(
            disk("its host's ${state} is paused"),
            "#!ipxe\necho Muster: its hosts state is paused\necho Muster: going on to the next boot device\n\
             iseq ${platform} efi && exit 1 || exit 0\n"
        );
    }

    proptest! {
        /// Whatever is written as a kernel parameter or asked for in a URL, a script has the same lines and the same commands.
        #[test]
        fn hostile_text_never_changes_a_script(
            text in "(\\PC|[\n\r\t \\\\'\"${}|&#;`]){0,40}",
            mac: [u8; 6],
            name in "(\\PC|[\n ${}|&]){0,20}",
        ) {
            let parameters: Vec<Parameter> = Parameter::new(&text).into_iter().collect();
            let segment = SegmentKey::new("a", &name).unwrap_or(boot().segment);
            let script = ramdisk(server(), &Boot { mac: Mac(mac), segment, ..boot() }, &parameters);
            prop_assert!(script.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
            let shape = |script: &str| -> Vec<String> {
                let skeleton = |line: &str| line.chars().filter(|c| "${}|&#;`'\"\\".contains(*c)).collect();
                script.lines().map(skeleton).collect()
            };
            prop_assert_eq!(shape(&script), shape(&ramdisk(server(), &boot(), &[])));
        }
    }
}
