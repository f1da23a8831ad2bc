//! A Helm chart as it comes out of a registry: a gzipped tar of a few small text files.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Error;

/// Bytes that a chart may unpack to; Karpenter's with its CRDs is about 0.5 MB.
const UNPACKED_BYTES: u64 = 20 << 20;

/// A chart, unpacked and parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// `Chart.yaml`.
    pub metadata: Metadata,
    /// `values.yaml`: the chart's defaults.
    pub values: Map<String, Value>,
    /// Source of every file under `templates/`, by its path inside the chart.
    pub templates: BTreeMap<String, String>,
    /// CustomResourceDefinitions of `crds/`, which Helm installs once and never upgrades.
    pub crds: Vec<Value>,
}

/// What `Chart.yaml` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The chart's name.
    pub name: String,
    /// The chart's version.
    pub version: String,
    /// The version of what it installs; empty if not said.
    #[serde(default)]
    pub app_version: String,
    #[serde(default)]
    dependencies: Vec<Value>,
}

impl Chart {
    /// Unpacks a chart from a registry's layer.
    ///
    /// # Errors
    /// The archive is broken or too large, a file is no YAML, or the chart has subcharts.
    pub fn from_tgz(tgz: &[u8]) -> Result<Self, Error> {
        let unreadable = |error: std::io::Error| Error::Archive(error.to_string());
        let mut files = BTreeMap::new();
        let mut left = UNPACKED_BYTES;
        let mut archive = tar::Archive::new(GzDecoder::new(tgz).take(UNPACKED_BYTES + 1));
        for entry in archive.entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path().map_err(unreadable)?.to_string_lossy().into_owned();
            // Everything lies in one folder named after the chart.
            let Some((_, path)) = path.trim_start_matches("./").split_once('/') else { continue };
            let path = path.to_owned();
            left = left
                .checked_sub(entry.size())
                .ok_or_else(|| Error::Archive(format!("it unpacks to more than {UNPACKED_BYTES} bytes")))?;
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(unreadable)?;
            // Icons and the like are no concern of ours, and a template that is no text cannot be one.
            if let Ok(text) = String::from_utf8(bytes) {
                files.insert(path, text);
            }
        }
        Self::from_files(files)
    }

    /// Reads a chart from its files, by their path inside the chart.
    ///
    /// # Errors
    /// `Chart.yaml` is missing, a file is no YAML, or the chart has subcharts.
    pub fn from_files(files: BTreeMap<String, String>) -> Result<Self, Error> {
        let metadata: Metadata = match files.get("Chart.yaml") {
            Some(text) => parse("Chart.yaml", text)?,
            None => return Err(Error::Archive("it has no Chart.yaml".to_owned())),
        };
        if !metadata.dependencies.is_empty() || files.keys().any(|path| path.starts_with("charts/")) {
            return Err(Error::Unsupported("subcharts".to_owned()));
        }
        let values = match files.get("values.yaml") {
            Some(text) => parse::<Option<Map<String, Value>>>("values.yaml", text)?.unwrap_or_default(),
            None => Map::new(),
        };
        let mut crds = Vec::new();
        let mut templates = BTreeMap::new();
        for (path, text) in files {
            if path.starts_with("crds/") && is_yaml(&path) {
                crds.extend(documents(&path, &text)?);
            } else if path.starts_with("templates/") {
                templates.insert(path, text);
            }
        }
        Ok(Self { metadata, values, templates, crds })
    }
}

fn is_yaml(path: &str) -> bool {
    [".yaml", ".yml"].iter().any(|ending| path.ends_with(ending))
}

fn parse<T: serde::de::DeserializeOwned>(file: &str, text: &str) -> Result<T, Error> {
    serde_saphyr::from_str(text)
        .map_err(|error| Error::File { file: file.to_owned(), message: error.without_snippet().to_string() })
}

/// The YAML documents of a text that are not empty.
pub(crate) fn documents(file: &str, text: &str) -> Result<Vec<Value>, Error> {
    serde_saphyr::from_multiple::<Value>(text)
        .map(|documents| documents.into_iter().filter(|document| !document.is_null()).collect())
        .map_err(|error| Error::File { file: file.to_owned(), message: error.without_snippet().to_string() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn tgz(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, *bytes).unwrap();
        }
        archive.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn a_chart_is_unpacked_with_its_crds_apart() {
        let chart = Chart::from_tgz(&tgz(&[
            ("demo/Chart.yaml", b"apiVersion: v2\nname: demo\nversion: 1.2.3\nappVersion: \"1.2\"\n"),
            ("demo/values.yaml", b"replicas: 2\n"),
            ("demo/templates/a.yaml", b"kind: A"),
            ("demo/templates/_helpers.tpl", b"{{/* nothing */}}"),
            ("demo/crds/b.yaml", b"# a comment\n---\nkind: CustomResourceDefinition\n---\n"),
            ("demo/icon.png", &[0xff, 0xfe]),
        ]))
        .unwrap();
        assert_eq!((chart.metadata.name.as_str(), chart.metadata.app_version.as_str()), ("demo", "1.2"));
        assert_eq!(chart.values["replicas"], 2);
        assert_eq!(chart.templates.keys().collect::<Vec<_>>(), ["templates/_helpers.tpl", "templates/a.yaml"]);
        assert_eq!(chart.crds.len(), 1);
    }

    #[test]
    fn what_is_no_chart_is_refused_with_a_reason() {
        assert!(matches!(Chart::from_tgz(b"no gzip"), Err(Error::Archive(_))));
        assert_eq!(
            Chart::from_tgz(&tgz(&[("demo/values.yaml", b"")])),
            Err(Error::Archive("it has no Chart.yaml".to_owned()))
        );
        let broken = Chart::from_tgz(&tgz(&[
            ("demo/Chart.yaml", b"name: demo\nversion: 1.0.0\n"),
            ("demo/values.yaml", b"a: [\n"),
        ]));
        assert!(matches!(broken, Err(Error::File { file, .. }) if file == "values.yaml"));
        let nested = Chart::from_tgz(&tgz(&[
            ("demo/Chart.yaml", b"name: demo\nversion: 1.0.0\n"),
            ("demo/charts/sub/Chart.yaml", b"name: sub\nversion: 1.0.0\n"),
        ]));
        assert_eq!(nested, Err(Error::Unsupported("subcharts".to_owned())));
    }

    #[test]
    fn a_decompression_bomb_is_refused() {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
        let mut header = tar::Header::new_gnu();
        header.set_size(UNPACKED_BYTES + 1);
        archive.append_data(&mut header, "demo/templates/a.yaml", std::io::repeat(0).take(UNPACKED_BYTES + 1)).unwrap();
        let mut bomb = archive.into_inner().unwrap();
        bomb.flush().unwrap();
        assert!(matches!(Chart::from_tgz(&bomb.finish().unwrap()), Err(Error::Archive(_))));
    }
}
