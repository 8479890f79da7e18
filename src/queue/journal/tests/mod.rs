//! The journal on a real directory: damage, limits, starts, and all steps in any order against a list.

mod damage;
mod limits;
mod model;
mod restart;
pub(super) mod rig;
