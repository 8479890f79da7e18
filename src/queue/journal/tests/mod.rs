//! The journal on a real directory: damage, limits, and all steps in any order against a list.

mod damage;
mod limits;
mod model;
pub(super) mod rig;
