//! What can be wrong with a chart, its values or what it renders to.

/// Every way in which a chart does not become manifests. Each message names the file or the value to look at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The archive is not a chart: broken compression, too large, or a needed file is missing.
    #[error("the chart's archive cannot be read: {0}")]
    Archive(String),
    /// The chart uses what this renderer does not do: subcharts, hooks.
    #[error("the chart needs {0}, which is not supported")]
    Unsupported(String),
    /// A file of the chart is not the YAML that it should be.
    #[error("{file} is not valid: {message}")]
    File {
        /// Path inside the chart.
        file: String,
        /// The parser's message.
        message: String,
    },
    /// A template fails, most often because a value is missing or has the wrong type.
    #[error("{file} does not render: {message}")]
    Template {
        /// Path inside the chart.
        file: String,
        /// The template engine's message.
        message: String,
    },
    /// A template renders to something that is no Kubernetes object.
    #[error("{file} renders to something that is no Kubernetes object: {message}")]
    Manifest {
        /// Path inside the chart.
        file: String,
        /// What is wrong with it.
        message: String,
    },
}
