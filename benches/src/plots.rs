//! Pictures of a run.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::contenders::{OURS, On, PYTHON, SEED, SELECT, SESSION, SINGLE, UPDATE};
use crate::plan::Workload;
use crate::results::Results;

/// A name and its points.
type Series = (String, Vec<(f64, f64)>);

/// Draws what there are figures for, and names the files with what they show.
pub(crate) fn draw(results: &Results, folder: &Path) -> Result<Vec<(String, String)>> {
    std::fs::create_dir_all(folder)?;
    let mut drawn = Vec::new();
    let mut plot = |file: &str, plot: Plot<'_>| -> Result<()> {
        if plot.series.iter().any(|(_, points)| points.len() > 1) {
            plot.draw(&folder.join(file)).map_err(|error| anyhow!("{file}: {error}"))?;
            drawn.push((file.to_owned(), plot.title.to_owned()));
        }
        Ok(())
    };
    for (on, file) in [
        (On::Postgres, "throughput-postgres.svg"),
        (On::MariaDb, "throughput-mariadb.svg"),
        (On::MySql, "throughput-mysql.svg"),
    ] {
        let series = [OURS, SINGLE, SEED, SESSION, UPDATE, SELECT]
            .map(|system| (system.to_owned(), by_tasks(results, on, system, "per_second")));
        plot(
            file,
            Plot {
                title: &format!("Pairs a second by tasks, {}", on.name()),
                x: "tasks",
                y: "pairs a second",
                logarithmic: true,
                series: series.to_vec(),
            },
        )?;
    }
    let mut hand_over = Vec::new();
    for on in [On::Postgres, On::MariaDb, On::Redis, On::Etcd] {
        for system in results.systems(Workload::HandOver, on) {
            if system != PYTHON {
                hand_over
                    .push((format!("{system}, {}", on.name()), distribution(results, on, system)));
            }
        }
    }
    plot(
        "hand-over.svg",
        Plot {
            title: "Hand-over between two processes, by percentile",
            x: "percentile",
            y: "ms",
            logarithmic: false,
            series: hand_over,
        },
    )?;
    let cost = [On::Postgres, On::MySql, On::MariaDb, On::Galera, On::Sqlite, On::Memory]
        .map(|on| (on.name().to_owned(), cost(results, on)));
    plot(
        "cost-of-leases.svg",
        Plot {
            title: "Processor time of a client by the leases that it holds",
            x: "leases",
            y: "percent of a core",
            logarithmic: true,
            series: cost.to_vec(),
        },
    )?;
    let connections = [OURS, SINGLE, SESSION]
        .map(|system| (system.to_owned(), by_tasks(results, On::Postgres, system, "connections")));
    plot(
        "connections.svg",
        Plot {
            title: "Connections of a process by the locks that it works with, Postgres",
            x: "locks",
            y: "connections",
            logarithmic: true,
            series: connections.to_vec(),
        },
    )?;
    Ok(drawn)
}

fn by_tasks(results: &Results, on: On, system: &str, figure: &str) -> Vec<(f64, f64)> {
    let variants = results.variants(Workload::Pairs, on);
    let point = |variant: &String| {
        let tasks: f64 = variant.split(' ').next()?.parse().ok()?;
        Some((tasks, results.median(Workload::Pairs, variant, on, system, figure)?))
    };
    variants.iter().filter_map(point).filter(|(_, y)| *y > 0.0).collect()
}

fn distribution(results: &Results, on: On, system: &str) -> Vec<(f64, f64)> {
    let mut rounds = results.0.iter().filter(|sample| {
        sample.workload == Workload::HandOver.title()
            && sample.server == on.name()
            && sample.system == system
    });
    let percentiles = rounds.next_back().map(|sample| sample.percentiles.as_slice());
    let at = (0..100_u8).map(f64::from).chain([99.9]);
    at.zip(percentiles.unwrap_or_default()).map(|(at, micros)| (at, micros / 1e3)).collect()
}

fn cost(results: &Results, on: On) -> Vec<(f64, f64)> {
    let sizes = [Workload::Hold, Workload::HoldMany].into_iter().flat_map(|workload| {
        results.variants(workload, on).into_iter().map(move |variant| (workload, variant))
    });
    let point = |(workload, variant): (Workload, String)| {
        let leases: f64 = variant.split(' ').next()?.parse().ok()?;
        let of = |name| results.median(workload, &variant, on, OURS, name);
        Some((leases, 100.0 * of("client_cpu_seconds")? / of("seconds")?))
    };
    sizes.filter_map(point).filter(|(_, y)| *y > 0.0).collect()
}

struct Plot<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    /// Whether the axis across is logarithmic. The one upwards always is.
    logarithmic: bool,
    series: Vec<Series>,
}

impl Plot<'_> {
    fn draw(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)))
        };
        let (left, right) = range(&mut points().map(|(x, _)| *x));
        let (low, high) = range(&mut points().map(|(_, y)| *y));
        let root = SVGBackend::new(path, (900, 520)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut builder = ChartBuilder::on(&root);
        builder
            .caption(self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(72);
        let upwards = (low * 0.8..high * 1.25).log_scale();
        // The two kinds of axes are of two types.
        macro_rules! draw {
            ($across:expr) => {{
                let mut chart = builder.build_cartesian_2d($across, upwards)?;
                chart.configure_mesh().x_desc(self.x).y_desc(self.y).draw()?;
                for (i, (name, points)) in self.series.iter().enumerate() {
                    if points.is_empty() {
                        continue;
                    }
                    let style = Palette99::pick(i).stroke_width(if i == 0 { 4 } else { 2 });
                    chart
                        .draw_series(LineSeries::new(points.iter().copied(), style))?
                        .label(name)
                        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
                    chart.draw_series(
                        points.iter().map(|point| Circle::new(*point, 2, style.filled())),
                    )?;
                }
                chart
                    .configure_series_labels()
                    .position(SeriesLabelPosition::UpperLeft)
                    .background_style(WHITE.mix(0.85))
                    .border_style(BLACK.mix(0.4))
                    .draw()?;
            }};
        }
        if self.logarithmic {
            draw!((left.max(0.5)..right.max(1.0) * 1.1).log_scale());
        } else {
            draw!(left..right.max(1.0));
        }
        root.present()?;
        Ok(())
    }
}
