//! What all samples say together.

use crate::contenders::{OURS, On};
use crate::plan::Workload;
use crate::run::Sample;
use crate::stats::median;

/// The samples of a run, to be asked.
#[derive(Debug)]
pub(crate) struct Results(pub(crate) Vec<Sample>);

/// The middle of a figure over all rounds, and how far it went to both sides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Results {
    /// A figure of one contender at one size of a work.
    pub(crate) fn figure(
        &self,
        workload: Workload,
        variant: &str,
        on: On,
        system: &str,
        name: &str,
    ) -> Option<Figure> {
        let values: Vec<f64> = self
            .of(workload, on)
            .filter(|sample| sample.variant == variant && sample.system == system)
            .filter_map(|sample| sample.figures.get(name).copied())
            .collect();
        Some(Figure {
            median: median(&values)?,
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }

    /// The median of a [`figure`](Self::figure).
    pub(crate) fn median(
        &self,
        workload: Workload,
        variant: &str,
        on: On,
        system: &str,
        name: &str,
    ) -> Option<f64> {
        Some(self.figure(workload, variant, on, system, name)?.median)
    }

    /// The sizes of a work on a server, in the order in which they ran.
    pub(crate) fn variants(&self, workload: Workload, on: On) -> Vec<String> {
        distinct(self.of(workload, on).map(|sample| sample.variant.clone()))
    }

    /// Who did a work on a server; ours first.
    pub(crate) fn systems(&self, workload: Workload, on: On) -> Vec<&'static str> {
        let mut systems = distinct(self.of(workload, on).map(|sample| sample.system));
        systems.sort_by_key(|system| *system != OURS);
        systems
    }

    /// Samples that have something to complain about.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &Sample> {
        self.0.iter().filter(|sample| {
            let counted = ["failed", "errors", "lost", "double_grants", "stuck"];
            counted.iter().any(|name| sample.figures.get(*name).is_some_and(|count| *count > 0.0))
        })
    }

    fn of(&self, workload: Workload, on: On) -> impl Iterator<Item = &Sample> {
        self.0
            .iter()
            .filter(move |sample| sample.workload == workload.title() && sample.server == on.name())
    }
}

fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut distinct = Vec::new();
    for value in values {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}
