//! The queue with its journal: chosen cases, and all steps in any order against a list.

mod model;
mod together;
