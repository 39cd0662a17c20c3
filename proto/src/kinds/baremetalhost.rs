use k8s_openapi::{
    api::core::v1::{ObjectReference, SecretReference, Taint},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{HardwareDetails, Packed};

/// A bare metal host.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "metal3.io",
    version = "v1alpha1",
    kind = "BareMetalHost",
    plural = "baremetalhosts",
    shortname = "bmh",
    shortname = "bmhost",
    namespaced,
    status = "BareMetalHostStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Status","type":"string","priority":1,"jsonPath":".status.operationalStatus"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.provisioning.state"}"#,
    printcolumn = r#"{"name":"Consumer","type":"string","jsonPath":".spec.consumerRef.name"}"#,
    printcolumn = r#"{"name":"BMC","type":"string","priority":1,"jsonPath":".spec.bmc.address"}"#,
    printcolumn = r#"{"name":"Online","type":"string","jsonPath":".spec.online"}"#,
    printcolumn = r#"{"name":"Error","type":"string","jsonPath":".status.errorType"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct BareMetalHostSpec {
    /// CPU architecture, such as `x86_64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Whether disks are cleaned on deprovisioning and before the first provisioning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "metadata"))]
    pub automated_cleaning_mode: Option<AutomatedCleaningMode>,
    /// How the BMC is reached; a host without one is unmanaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc: Option<BmcDetails>,
    /// MAC address of the NIC from which the machine boots.
    #[serde(default, rename = "bootMACAddress", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}"))]
    pub boot_mac_address: Option<String>,
    /// How the firmware boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_mode: Option<HostBootMode>,
    /// The object that uses this host, such as a Metal3Machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_ref: Option<Box<ObjectReference>>,
    /// Provisioning by a method other than writing an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_deploy: Option<Box<CustomDeploy>>,
    /// A description of the host, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Never power the host off; reboot it instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_power_off: Option<bool>,
    /// The host was provisioned by other means; only its power is managed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub externally_provisioned: Option<bool>,
    /// Firmware settings; deprecated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareConfig>,
    /// Deprecated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_profile: Option<String>,
    /// The image that is written to the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// How the host is inspected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inspection_mode: Option<InspectionMode>,
    /// Secret with the instance's metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta_data: Option<SecretReference>,
    /// Secret with the instance's network data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_data: Option<SecretReference>,
    /// Networks that the interfaces are attached to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkInterface>,
    /// Whether the host should be powered on.
    pub online: bool,
    /// Secret with network data for the ramdisk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprovisioning_network_data_name: Option<String>,
    /// RAID volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raid: Option<Box<RaidConfig>>,
    /// Which disk the image is written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_device_hints: Option<Box<RootDeviceHints>>,
    /// Deprecated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
    /// Secret with the instance's user data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<SecretReference>,
}

/// Whether disks are cleaned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AutomatedCleaningMode {
    /// Partition tables and signatures.
    #[default]
    Metadata,
    /// Disks are not cleaned.
    Disabled,
}

/// How the firmware boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HostBootMode {
    /// UEFI.
    #[serde(rename = "UEFI")]
    Uefi,
    /// UEFI with Secure Boot.
    #[serde(rename = "UEFISecureBoot")]
    UefiSecureBoot,
    /// PC BIOS.
    #[serde(rename = "legacy")]
    Legacy,
}

/// How a host is inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InspectionMode {
    /// The host is not inspected.
    Disabled,
    /// By the agent.
    Agent,
    /// By the BMC.
    Fast,
}

/// How the BMC is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BmcDetails {
    /// URL of the BMC.
    pub address: String,
    /// Secret with `username` and `password`.
    pub credentials_name: String,
    /// Do not verify the BMC's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_certificate_verification: Option<bool>,
}

/// Provisioning by another method.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CustomDeploy {
    /// Name of the method.
    pub method: String,
}

/// Firmware settings; deprecated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FirmwareConfig {
    /// Simultaneous multithreading (SMT).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true, false]))]
    pub simultaneous_multithreading_enabled: Option<bool>,
    /// SR-IOV.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true, false]))]
    pub sriov_enabled: Option<bool>,
    /// Hardware virtualisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true, false]))]
    pub virtualization_enabled: Option<bool>,
}

/// A disk image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Digest of the image or the URL of a list of digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// Algorithm of the digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum_type: Option<ChecksumType>,
    /// Format of the image. Upstream's clients also send the empty string for "not set", which upstream's schema refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// Secret for the registry of an `oci://` image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci_auth_secret_name: Option<String>,
    /// Where the image is.
    pub url: String,
}

/// Algorithm of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChecksumType {
    /// MD5.
    Md5,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
    /// Detected by the length of the digest.
    Auto,
}

/// Format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImageFormat {
    /// Not set.
    #[serde(rename = "")]
    Unset,
    /// Raw disk image.
    #[serde(rename = "raw")]
    Raw,
    /// QEMU's qcow2.
    #[serde(rename = "qcow2")]
    Qcow2,
    /// VirtualBox's VDI.
    #[serde(rename = "vdi")]
    Vdi,
    /// VMware's VMDK.
    #[serde(rename = "vmdk")]
    Vmdk,
    /// An ISO image that the host boots; nothing is written to the disk.
    #[serde(rename = "live-iso")]
    LiveIso,
}

/// A network interface and what it is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkInterface {
    /// The attachment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_network_attachment: Option<AttachmentReference>,
    /// MAC address.
    #[serde(rename = "macAddress", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$"))]
    pub mac_address: Option<String>,
    /// Name of the interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub name: Option<String>,
    /// The switch port that the cable leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch_port: Option<SwitchPort>,
}

/// Reference to a HostNetworkAttachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AttachmentReference {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub name: Option<String>,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
}

/// A port of a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SwitchPort {
    /// Port.
    #[serde(rename = "portID")]
    pub port_id: String,
    /// The switch's MAC address.
    #[serde(rename = "switchID")]
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$"))]
    pub switch_id: String,
}

/// RAID volumes: `[]` deletes all of them; if absent, they are left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RaidConfig {
    /// Volumes of a RAID controller.
    #[serde(rename = "hardwareRAIDVolumes", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("nullable" = true))]
    pub hardware_raid_volumes: Option<Vec<HardwareRaidVolume>>,
    /// Volumes of Linux md.
    #[serde(rename = "softwareRAIDVolumes", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2), extend("nullable" = true))]
    pub software_raid_volumes: Option<Vec<SoftwareRaidVolume>>,
}

/// A volume of a RAID controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HardwareRaidVolume {
    /// Controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// RAID level.
    #[schemars(extend("enum" = ["0", "1", "2", "5", "6", "1+0", "5+0", "6+0"]))]
    pub level: String,
    /// Name of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub name: Option<String>,
    /// Number of disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub number_of_physical_disks: Option<i64>,
    /// Which disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub physical_disks: Vec<String>,
    /// Only rotating or only solid-state disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
    /// Size in GiB; 0 means all available space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub size_gibibytes: Option<i64>,
}

/// A volume of Linux md.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SoftwareRaidVolume {
    /// RAID level.
    #[schemars(extend("enum" = ["0", "1", "1+0"]))]
    pub level: String,
    /// Which disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 2))]
    pub physical_disks: Vec<RootDeviceHints>,
    /// True for the volume that the image is written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub root_volume: Option<bool>,
    /// Size in GiB; 0 means all available space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub size_gibibytes: Option<i64>,
}

/// The disk to write to: all hints must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RootDeviceHints {
    /// Name, such as `/dev/sda` or a by-path name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_name: Option<String>,
    /// SCSI location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hctl: Option<String>,
    /// At least this many GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub min_size_gigabytes: Option<i64>,
    /// Substring of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Rotating or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
    /// Serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<String>,
    /// Substring of the vendor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// World wide name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// Vendor extension of the World Wide Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwn_vendor_extension: Option<String>,
    /// World wide name with extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwn_with_extension: Option<String>,
}

/// The observed state of the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BareMetalHostStatus {
    /// Conditions, such as for `kubectl wait`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Number of consecutive errors.
    #[serde(default)]
    pub error_count: i64,
    /// What failed, for people.
    pub error_message: String,
    /// What failed, for machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_type: Option<ErrorType>,
    /// The credentials that last worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good_credentials: Option<CredentialsStatus>,
    /// What inspection found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Packed<HardwareDetails>>,
    /// Deprecated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_profile: Option<String>,
    /// The image of the last provisioning attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempted_image: Option<Box<Image>>,
    /// When the status was last written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<Time>,
    /// When operations started and ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_history: Option<OperationHistory>,
    /// The operational status of the host.
    pub operational_status: OperationalStatus,
    /// Whether the host was on when last seen.
    pub powered_on: bool,
    /// What has been provisioned.
    pub provisioning: ProvisionStatus,
    /// Number of consecutive failed attempts.
    #[serde(default)]
    pub provisioning_fail_count: i64,
    /// The credentials that were last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_credentials: Option<CredentialsStatus>,
}

/// The operational status of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OperationalStatus {
    /// Not determined yet.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// The host is in order.
    #[serde(rename = "OK")]
    Ok,
    /// Known, but without a BMC.
    #[serde(rename = "discovered")]
    Discovered,
    /// See `errorMessage`.
    #[serde(rename = "error")]
    Error,
    /// The host waits for others.
    #[serde(rename = "delayed")]
    Delayed,
    /// The host is left alone on request.
    #[serde(rename = "detached")]
    Detached,
    /// Being serviced.
    #[serde(rename = "servicing")]
    Servicing,
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ErrorType {
    /// A provisioned host could not be registered again.
    #[serde(rename = "provisioned registration error")]
    ProvisionedRegistration,
    /// The host could not be registered.
    #[serde(rename = "registration error")]
    Registration,
    /// Inspection failed.
    #[serde(rename = "inspection error")]
    Inspection,
    /// Preparation failed.
    #[serde(rename = "preparation error")]
    Preparation,
    /// Provisioning failed.
    #[serde(rename = "provisioning error")]
    Provisioning,
    /// Power could not be managed.
    #[serde(rename = "power management error")]
    PowerManagement,
    /// Servicing failed.
    #[serde(rename = "servicing error")]
    Servicing,
    /// Detaching failed; upstream's code uses it, upstream's schema lacks it.
    #[serde(rename = "detach error")]
    Detach,
}

/// Which version of which Secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CredentialsStatus {
    /// The Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretReference>,
    /// Its resource version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_version: Option<String>,
}

/// When operations began and ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OperationHistory {
    /// Deprovisioning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deprovision: Option<OperationMetric>,
    /// Inspection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inspect: Option<OperationMetric>,
    /// Provisioning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provision: Option<OperationMetric>,
    /// Registration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register: Option<OperationMetric>,
}

/// Start and end of an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OperationMetric {
    /// End.
    #[schemars(extend("nullable" = true))]
    pub end: Option<Time>,
    /// Start.
    #[schemars(extend("nullable" = true))]
    pub start: Option<Time>,
}

/// What has been provisioned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProvisionStatus {
    /// The machine's id with its provisioner.
    #[serde(rename = "ID")]
    pub id: String,
    /// How the firmware boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_mode: Option<HostBootMode>,
    /// The custom deployment method in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_deploy: Option<Box<CustomDeploy>>,
    /// Firmware settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareConfig>,
    /// The image on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// RAID volumes that were created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raid: Option<Box<RaidConfig>>,
    /// The root device hints in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_device_hints: Option<Box<RootDeviceHints>>,
    /// The provisioning state of the host, such as `unmanaged` or `available`.
    pub state: String,
}
