//! Kernel, initramfs and boot images, byte for byte reproducible.
