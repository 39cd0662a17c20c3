mod property;
mod rules;
mod sim;

use muster_proto::{inventory::Inventory, kinds::INSPECT_ANNOTATION, text};

use super::*;
