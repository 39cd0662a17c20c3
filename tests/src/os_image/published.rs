//! Images as they are published: raw and compressed, with files of sums beside them, kept below `target/os`.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, write::GzEncoder};
use muster_ramdisk::kernel::{Kernel, stub_from_deb};
use ring::digest;

use super::{
    Ingredients, Size,
    gpt::{BACKUP, FIRST_USABLE, SECTOR},
};
use crate::paths;

/// Changes when the same ingredients make another image.
const RECIPE: u32 = 2;
/// Bytes that are compared at once.
const PIECE: u64 = 1 << 20;
const INPUTS: &str = "inputs";
const SHA256SUMS: &str = "SHA256SUMS";
const SHA512SUMS: &str = "SHA512SUMS";

/// What an image boots with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Debian's cloud kernel: starts fastest; no SATA.
    Cloud,
    /// Debian's full kernel.
    Full,
    /// The cloud kernel in an image of 320 MiB.
    Large,
}

/// How an image is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it goes on the disk.
    Raw,
    /// Zstandard (RFC 8878), level 3, as one frame with a checksum.
    Zstd,
    /// gzip (RFC 1952).
    Gzip,
}

/// All forms.
pub const FORMS: [Form; 3] = [Form::Raw, Form::Zstd, Form::Gzip];

impl Form {
    fn ending(self) -> &'static str {
        match self {
            Form::Raw => "",
            Form::Zstd => ".zst",
            Form::Gzip => ".gz",
        }
    }
}

/// A published image.
#[derive(Clone, Debug)]
pub struct Image {
    dir: PathBuf,
    name: &'static str,
}

impl Image {
    /// The image of that flavour, which `cargo xtask build` made.
    pub fn find(flavour: Flavour) -> Result<Image> {
        let (kernel, name) = match flavour {
            Flavour::Cloud => ("cloud", SMALL),
            Flavour::Full => ("full", SMALL),
            Flavour::Large => ("cloud", LARGE),
        };
        let dir = paths::os_images()?.join(kernel);
        if !dir.join(name).exists() {
            bail!(
                "{} is missing; build it with `cargo xtask build`",
                dir.join(name).display()
            );
        }
        Ok(Image { dir, name })
    }

    /// The directory that it is in, with those of its kernel and the files of sums: what an image server serves.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name in one form, there and in URLs.
    pub fn name(&self, form: Form) -> String {
        format!("{}{}", self.name, form.ending())
    }

    /// Its file in one form.
    pub fn file(&self, form: Form) -> PathBuf {
        self.dir.join(self.name(form))
    }

    /// Bytes that it takes on a disk.
    pub fn size(&self) -> Result<u64> {
        let path = self.file(Form::Raw);
        let facts = path
            .metadata()
            .with_context(|| format!("look at {}", path.display()))?;
        Ok(facts.len())
    }

    /// The first byte at which `disk` differs from the image, between the two partition tables: these, whoever writes an image has to fit
    /// to the disk.
    pub fn first_difference(&self, disk: &Path) -> Result<Option<u64>> {
        let (begin, end) = (FIRST_USABLE * SECTOR, self.size()? - BACKUP * SECTOR);
        let open = |path: &Path| -> io::Result<_> {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(begin))?;
            Ok(file.take(end - begin))
        };
        let raw = self.file(Form::Raw);
        let mut image = open(&raw).with_context(|| format!("open {}", raw.display()))?;
        let mut disk = open(disk).with_context(|| format!("open {}", disk.display()))?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut at = begin;
        loop {
            for (file, piece) in [(&mut image, &mut ours), (&mut disk, &mut theirs)] {
                piece.clear();
                file.by_ref()
                    .take(PIECE)
                    .read_to_end(piece)
                    .context("compare a disk with its image")?;
            }
            if ours != theirs {
                let same = ours.iter().zip(&theirs).take_while(|(own, other)| own == other);
                return Ok(Some(at + u64::try_from(same.count())?));
            }
            if ours.is_empty() {
                return Ok(None);
            }
            at += u64::try_from(ours.len())?;
        }
    }

    /// SHA-256 of one form, in hexadecimal digits.
    pub fn sha256(&self, form: Form) -> Result<String> {
        self.sum(SHA256SUMS, form)
    }

    /// SHA-512 of one form, in hexadecimal digits.
    pub fn sha512(&self, form: Form) -> Result<String> {
        self.sum(SHA512SUMS, form)
    }

    fn sum(&self, sums: &str, form: Form) -> Result<String> {
        let path = self.dir.join(sums);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let name = self.name(form);
        let found = text.lines().find_map(|line| {
            let (sum, file) = line.split_once("  ")?;
            (file == name).then(|| sum.to_owned())
        });
        found.with_context(|| format!("{} does not list {name}", path.display()))
    }
}

const SMALL: &str = "os.raw";
const LARGE: &str = "os-large.raw";

/// The files that images are made from.
#[derive(Clone, Debug, clap::Args)]
pub struct Inputs {
    /// The program `muster-os`, static.
    #[arg(long)]
    pub init: PathBuf,
    /// Debian's package of the kernel.
    #[arg(long)]
    pub kernel_deb: PathBuf,
    /// Debian's package systemd-boot-efi, which has the UEFI stub.
    #[arg(long)]
    pub stub_deb: PathBuf,
}

/// Makes the images of one kernel in `dir`, with the large one if `large`; nothing happens if they are there, from the same inputs.
pub fn publish(dir: &Path, inputs: &Inputs, large: bool) -> Result<()> {
    let described = inputs.describe()?;
    let stamp = dir.join(INPUTS);
    if fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == described) {
        return Ok(());
    }
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    // What is interrupted is made anew.
    let _ = fs::remove_file(&stamp);
    let ingredients = inputs.read()?;
    let mut names = vec![(SMALL, Size::Small)];
    names.extend(large.then_some((LARGE, Size::Large)));
    let (mut sums256, mut sums512) = (String::new(), String::new());
    for (name, size) in names {
        let part = dir.join(format!("{name}.part"));
        super::write(&part, &ingredients, size)?;
        let raw = dir.join(name);
        // Whoever has the former one open keeps it.
        fs::rename(&part, &raw).with_context(|| format!("move to {}", raw.display()))?;
        for form in FORMS {
            let name = format!("{name}{}", form.ending());
            let (sha256, sha512) = pack(&raw, form, &dir.join(&name))?;
            sums256 += &format!("{sha256}  {name}\n");
            sums512 += &format!("{sha512}  {name}\n");
        }
    }
    for (name, text) in [(SHA256SUMS, sums256), (SHA512SUMS, sums512), (INPUTS, described)] {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

impl Inputs {
    fn describe(&self) -> Result<String> {
        let mut text = format!("recipe {RECIPE}\n");
        let init = fs::read(&self.init).with_context(|| format!("read {}", self.init.display()))?;
        text += &format!("init {}\n", hex(digest::digest(&digest::SHA256, &init)));
        // The name of a package has its version.
        for package in [&self.kernel_deb, &self.stub_deb] {
            let name = package.file_name().unwrap_or_default().to_string_lossy();
            text += &format!("package {name}\n");
        }
        Ok(text)
    }

    fn read(&self) -> Result<Ingredients> {
        let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
        Ok(Ingredients {
            kernel: Kernel::from_deb(open(&self.kernel_deb)?)?,
            stub: stub_from_deb(open(&self.stub_deb)?)?
                .0
                .with_context(|| format!("{} has no UEFI stub", self.stub_deb.display()))?,
            init: fs::read(&self.init).with_context(|| format!("read {}", self.init.display()))?,
        })
    }
}

/// Writes `raw` in another form to `to` (raw itself stays where it is), and returns the SHA-256 and SHA-512 of that form.
fn pack(raw: &Path, form: Form, to: &Path) -> Result<(String, String)> {
    let failed = || format!("pack {} into {}", raw.display(), to.display());
    let file = File::open(raw).with_context(failed)?;
    let length = file.metadata().with_context(failed)?.len();
    let mut source = BufReader::with_capacity(1 << 20, file);
    let part = to.with_added_extension("part");
    let summed = match form {
        Form::Raw => {
            let mut summed = Summed::new(io::sink());
            io::copy(&mut source, &mut summed).with_context(failed)?;
            return Ok(summed.sums());
        }
        Form::Zstd => {
            let mut encoder = zstd::Encoder::new(Summed::new(File::create(&part).with_context(failed)?), 3)
                .with_context(failed)?;
            encoder.include_checksum(true).with_context(failed)?;
            encoder.set_pledged_src_size(Some(length)).with_context(failed)?;
            io::copy(&mut source, &mut encoder).with_context(failed)?;
            encoder.finish().with_context(failed)?
        }
        Form::Gzip => {
            let file = File::create(&part).with_context(failed)?;
            let mut encoder = GzEncoder::new(Summed::new(file), Compression::new(6));
            io::copy(&mut source, &mut encoder).with_context(failed)?;
            encoder.finish().with_context(failed)?
        }
    };
    fs::rename(&part, to).with_context(failed)?;
    Ok(summed.sums())
}

/// Sums what is written through it.
struct Summed<W> {
    out: W,
    sha256: digest::Context,
    sha512: digest::Context,
}

impl<W: Write> Summed<W> {
    fn new(out: W) -> Summed<W> {
        Summed {
            out,
            sha256: digest::Context::new(&digest::SHA256),
            sha512: digest::Context::new(&digest::SHA512),
        }
    }

    fn sums(self) -> (String, String) {
        (hex(self.sha256.finish()), hex(self.sha512.finish()))
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sha256.update(&bytes[..written]);
        self.sha512.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn hex(sum: digest::Digest) -> String {
    sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn disk_is_compared_between_its_partition_tables() {
        let scratch = Scratch::new().unwrap();
        let image = Image {
            dir: scratch.path().to_owned(),
            name: SMALL,
        };
        let content = vec![7; 3 << 20];
        fs::write(image.file(Form::Raw), &content).unwrap();
        let disk = scratch.path().join("disk");
        let with = |at: &[usize]| {
            let mut content = content.clone();
            content.extend([0; 1000]);
            at.iter().for_each(|at| content[*at] = 8);
            fs::write(&disk, content).unwrap();
            image.first_difference(&disk).unwrap()
        };
        assert_eq!(with(&[0, 33 * 512, (3 << 20) - 1]), None);
        assert_eq!(with(&[34 * 512]), Some(34 * 512));
        assert_eq!(with(&[(1 << 20) + 5, 2 << 20]), Some((1 << 20) + 5));
        fs::write(&disk, &content[..1 << 20]).unwrap();
        assert_eq!(image.first_difference(&disk).unwrap(), Some(1 << 20));
    }

    #[test]
    fn every_form_unpacks_to_the_same_bytes_and_has_the_sums_of_its_own() {
        let scratch = Scratch::new().unwrap();
        let raw = scratch.path().join("raw");
        let content: Vec<u8> = (0..100_000_u32)
            .flat_map(|number| (number / 7).to_le_bytes())
            .collect();
        fs::write(&raw, &content).unwrap();
        for form in FORMS {
            let to = scratch.path().join(format!("raw{}", form.ending()));
            let (sha256, sha512) = pack(&raw, form, &to).unwrap();
            let packed = fs::read(&to).unwrap();
            assert_eq!(sha256, hex(digest::digest(&digest::SHA256, &packed)));
            assert_eq!(sha512, hex(digest::digest(&digest::SHA512, &packed)));
            let mut unpacked = Vec::new();
            match form {
                Form::Raw => unpacked = packed,
                Form::Zstd => unpacked = zstd::decode_all(packed.as_slice()).unwrap(),
                Form::Gzip => {
                    let mut decoder = flate2::read::GzDecoder::new(packed.as_slice());
                    decoder.read_to_end(&mut unpacked).unwrap();
                }
            }
            assert!(unpacked == content, "{form:?}");
        }
    }
}
