//! From Server to BareMetalHost. Writes BareMetalHost, HardwareData and Server spec.
