mod property;
mod rules;
mod sim;

use super::*;
