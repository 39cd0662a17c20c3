//! The UKI of one boot: stub, kernel and initramfs as one UEFI program, put together while it is sent.

use muster_ramdisk::uki::{Parts, Source, Uki, UkiError};

use super::{
    files::Ramdisk,
    http::body::{Body, Segment},
};

/// The image of `ramdisk` with this command line and initrd.
pub fn image(ramdisk: &Ramdisk, command_line: &str, initrd: &Body) -> Result<Body, UkiError> {
    let os_release = format!(
        "ID=muster\nPRETTY_NAME=\"Muster ramdisk\"\nVERSION_ID={}\n",
        ramdisk.name
    );
    let parts = Parts {
        os_release: &os_release,
        cmdline: command_line,
        kernel_len: ramdisk.kernel.len(),
        initrd_len: initrd.len(),
    };
    let uki = Uki::new(&ramdisk.stub, &parts)?;
    let kernel = Body::default().with(ramdisk.kernel.segment());
    let header = Body::of(uki.header().to_vec());
    let mut image = Body::default();
    for part in uki.segments() {
        let range = part.offset..part.offset + part.len;
        image = match part.source {
            Source::Header => image.with_body(header.slice(&range)),
            Source::Kernel => image.with_body(kernel.slice(&range)),
            Source::Initrd => image.with_body(initrd.slice(&range)),
            Source::Padding => {
                let zeros = usize::try_from(part.len).expect("padding is shorter than a page");
                image.with(Segment::Bytes(vec![0; zeros].into()))
            }
        };
    }
    Ok(image)
}
