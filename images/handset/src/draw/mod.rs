//! Everything that turns a [`scene::Scene`] into pixels: canvas, type, icons, wallpaper.
//!
//! All blending is integer arithmetic, and shapes are rasterised once and cached, because the
//! phones this runs on execute a few hundred million instructions a second.

pub mod canvas;
pub mod font;
pub mod icons;
pub mod render;
pub mod scene;
pub mod theme;
mod wallpaper;
