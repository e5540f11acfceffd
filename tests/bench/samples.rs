//! Repeated measurements, and what is said of them.

use anyhow::{Result, ensure};

/// Measurements of one thing, in one unit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(crate) fn map(&self, change: impl Fn(f64) -> f64) -> Samples {
        Samples(self.0.iter().copied().map(change).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn median(&self) -> Result<f64> {
        self.quantile(0.5)
    }

    /// The smallest figure that at least the part `q` (0 to 1) of all does not exceed. Refused when the samples are too few for one
    /// of them to lie beyond it: a 99th percentile needs a hundred.
    pub(crate) fn quantile(&self, q: f64) -> Result<f64> {
        let count = self.0.len();
        ensure!(count as f64 * (1.0 - q) >= 1.0 || (q == 0.5 && count > 0), "{count} samples are too few for the quantile {q}");
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        // Between the middle two, where there is no middle one.
        if q == 0.5 && count.is_multiple_of(2) {
            return Ok((sorted[count / 2 - 1] + sorted[count / 2]) / 2.0);
        }
        Ok(sorted[((count as f64 * q).ceil() as usize).clamp(1, count) - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_enough_samples() {
        let samples = Samples((1..=200).rev().map(f64::from).collect());
        assert_eq!(samples.quantile(0.99).unwrap(), 198.0);
        assert_eq!(samples.median().unwrap(), 100.5);
        assert_eq!(Samples(vec![3.0, 1.0, 9.0]).median().unwrap(), 3.0);
        assert!(Samples(vec![0.0; 99]).quantile(0.99).is_err());
        assert!(Samples::default().median().is_err());
    }
}
