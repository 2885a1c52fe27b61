//! Sparkplug B payloads (Eclipse Sparkplug 3.0, `sparkplug_b.proto`) as JSON, in the words that its specification uses for its examples.
//!
//! After a BIRTH metrics go by alias and without datatype, so both are learned from the BIRTHs that come by: what is known is bounded,
//! and what is not known stays as it is (the alias a number, an integer unsigned).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Number;

use crate::router::coding::{Coding, UNPACKED_BYTES_MAX};
use crate::router::doc::Doc;
use crate::router::protobuf::{Fields, NotWire, Wire};

/// What the topics of Sparkplug B begin with.
const NAMESPACE: &str = "spBv1.0";
/// Of one payload, in all of it: as many as conditions and templates look at.
const VALUES_MAX: usize = crate::router::json::VALUES_MAX;
/// Templates within templates, sets within sets.
const DEPTH_MAX: usize = 16;
/// Bytes that are remembered of all edge nodes; of more the node whose BIRTH is oldest is forgotten.
pub const KNOWN_BYTES_MAX: usize = 16 << 20;
/// What one metric costs beside its name.
const KNOWN_BYTES: usize = 64;
/// What one node costs beside its name: two tables, and its place in those of all.
const NODE_BYTES: usize = 512;
/// A longer name is not remembered: of a metric, of a device, of a node with its group.
const NAME_BYTES_MAX: usize = 1_024;
/// A payload within a payload.
const COMPRESSED: &str = "SPBV1.0_COMPRESSED";

/// The names of datatypes, from 0 on.
const TYPES: [&str; 35] = [
    "Unknown",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "UInt8",
    "UInt16",
    "UInt32",
    "UInt64",
    "Float",
    "Double",
    "Boolean",
    "String",
    "DateTime",
    "Text",
    "UUID",
    "DataSet",
    "Bytes",
    "File",
    "Template",
    "PropertySet",
    "PropertySetList",
    "Int8Array",
    "Int16Array",
    "Int32Array",
    "Int64Array",
    "UInt8Array",
    "UInt16Array",
    "UInt32Array",
    "UInt64Array",
    "FloatArray",
    "DoubleArray",
    "BooleanArray",
    "StringArray",
    "DateTimeArray",
];

/// Why a payload has no JSON form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SparkplugError {
    /// Something else, or damaged.
    #[error("the payload is no Sparkplug B")]
    Not,
    /// More values, deeper, or larger than is looked at.
    #[error("the payload has more than {VALUES_MAX} values, {DEPTH_MAX} levels, or {UNPACKED_BYTES_MAX} bytes decoded")]
    TooLarge,
}

/// What the BIRTHs of edge nodes have said.
#[derive(Debug, Default)]
pub struct Births {
    nodes: HashMap<Arc<str>, Node>,
    /// The same, the oldest BIRTH first.
    by_age: BTreeMap<u64, Arc<str>>,
    bytes: usize,
    /// Counts BIRTHs of nodes.
    next: u64,
}

/// One edge node and its devices.
#[derive(Debug)]
struct Node {
    born: u64,
    /// Of the node and all its devices.
    aliases: HashMap<u64, Known>,
    /// Of metrics that go by their names: those of a device under `DEVICE/NAME`.
    types: HashMap<Box<str>, u64>,
    /// What it counts for, its name included.
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Known {
    name: Box<str>,
    datatype: u64,
}

/// Where a payload comes from: the levels of its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
struct From<'t> {
    /// `GROUP/NODE`.
    node: Box<str>,
    device: &'t str,
    kind: &'t str,
}

/// The JSON form of a payload; `None`: it is none of Sparkplug's own, such as the JSON of `spBv1.0/STATE/..`.
pub(super) fn decode(topic: &str, payload: &[u8], births: &mut Births) -> Result<Option<Vec<u8>>, SparkplugError> {
    if payload.is_empty() || topic.split('/').nth(1).is_some_and(|kind| kind == "STATE") {
        return Ok(None);
    }
    let from = From::of(topic);
    let mut reading =
        Reading { left: UNPACKED_BYTES_MAX, values: VALUES_MAX, births, from: from.as_ref(), learned: Vec::new() };
    let mut doc = reading.payload(payload, 0)?;
    if let Some(inner) = compressed(&doc)? {
        doc = reading.payload(&inner, 0)?;
    }
    let learned = reading.learned;
    if let Some(from) = &from {
        births.learn(from, learned);
    }
    serde_json::to_vec(&doc).map(Some).map_err(|_never| SparkplugError::Not)
}

impl<'t> From<'t> {
    fn of(topic: &'t str) -> Option<Self> {
        let mut levels = topic.split('/');
        let is_ours = levels.next() == Some(NAMESPACE);
        let (group, kind, node) = (levels.next()?, levels.next()?, levels.next()?);
        let device = levels.next().unwrap_or_default();
        is_ours.then(|| Self { node: format!("{group}/{node}").into(), device, kind })
    }

    fn named(&self, name: &str) -> Box<str> {
        format!("{}/{name}", self.device).into()
    }
}

impl Births {
    fn alias(&self, from: &From<'_>, alias: u64) -> Option<&Known> {
        self.nodes.get(&*from.node)?.aliases.get(&alias)
    }

    fn datatype(&self, from: &From<'_>, name: &str) -> Option<u64> {
        self.nodes.get(&*from.node)?.types.get(&from.named(name)).copied()
    }

    /// Takes over what a BIRTH says. That of a node begins anew, that of a device comes on top.
    fn learn(&mut self, from: &From<'_>, metrics: Vec<(Option<u64>, Known)>) {
        let of_node = match from.kind {
            "NBIRTH" => true,
            "DBIRTH" => false,
            _ => return,
        };
        if from.node.len() > NAME_BYTES_MAX || from.device.len() > NAME_BYTES_MAX {
            return;
        }
        let known = self.forget(&from.node).filter(|_| !of_node);
        let mut node = known.unwrap_or_else(|| self.new_node(&from.node));
        for (alias, known) in metrics.into_iter().filter(|(_, known)| known.name.len() <= NAME_BYTES_MAX) {
            node.note(alias, known, from);
        }
        self.bytes += node.bytes;
        let name: Arc<str> = Arc::from(&*from.node);
        self.by_age.insert(node.born, Arc::clone(&name));
        self.nodes.insert(name, node);
        while self.bytes > KNOWN_BYTES_MAX {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, name: &str) -> Option<Node> {
        let node = self.nodes.remove(name)?;
        self.by_age.remove(&node.born);
        self.bytes -= node.bytes;
        Some(node)
    }

    fn new_node(&mut self, name: &str) -> Node {
        self.next += 1;
        Node { born: self.next, aliases: HashMap::new(), types: HashMap::new(), bytes: name.len() + NODE_BYTES }
    }
}

impl Node {
    fn note(&mut self, alias: Option<u64>, known: Known, from: &From<'_>) {
        let Some(alias) = alias else {
            let name = from.named(&known.name);
            let bytes = name.len() + KNOWN_BYTES;
            if self.types.insert(name, known.datatype).is_none() {
                self.bytes += bytes;
            }
            return;
        };
        self.bytes += known.name.len() + KNOWN_BYTES;
        if let Some(before) = self.aliases.insert(alias, known) {
            self.bytes -= before.name.len() + KNOWN_BYTES;
        }
    }
}

/// A decoding under way, and what it may still cost.
struct Reading<'r, 't> {
    left: usize,
    values: usize,
    births: &'r Births,
    from: Option<&'r From<'t>>,
    learned: Vec<(Option<u64>, Known)>,
}

/// A section under construction.
type Section = Vec<(String, Doc)>;

impl Reading<'_, '_> {
    fn payload(&mut self, bytes: &[u8], depth: usize) -> Result<Doc, SparkplugError> {
        let (mut head, mut metrics, mut tail) = (Section::new(), Vec::new(), Section::new());
        for field in fields(bytes) {
            match field? {
                (1, Wire::Varint(time)) => self.put(&mut head, "timestamp", whole(time))?,
                (2, Wire::Bytes(metric)) => metrics.push(self.metric(metric, depth + 1)?),
                (3, Wire::Varint(seq)) => self.put(&mut tail, "seq", whole(seq))?,
                (4, Wire::Bytes(uuid)) => self.put_text(&mut tail, "uuid", uuid)?,
                (5, Wire::Bytes(body)) => self.put_bytes(&mut tail, "body", body)?,
                (1..=5, _) => return Err(SparkplugError::Not),
                _ => {}
            }
        }
        self.put(&mut head, "metrics", Doc::List(metrics))?;
        head.append(&mut tail);
        Ok(Doc::Map(head))
    }

    fn metric(&mut self, bytes: &[u8], depth: usize) -> Result<Doc, SparkplugError> {
        self.cost(0, depth)?;
        let (mut name, mut alias, mut datatype, mut value) = (None, None, None, None);
        let (mut middle, mut tail) = (Section::new(), Section::new());
        let mut is_null = false;
        for field in fields(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => name = Some(text_of(text)),
                (2, Wire::Varint(number)) => alias = Some(number),
                (3, Wire::Varint(time)) => self.put(&mut middle, "timestamp", whole(time))?,
                (4, Wire::Varint(number)) => datatype = Some(number),
                (5, Wire::Varint(flag)) => self.put(&mut tail, "isHistorical", Doc::Bool(flag != 0))?,
                (6, Wire::Varint(flag)) => self.put(&mut tail, "isTransient", Doc::Bool(flag != 0))?,
                (7, Wire::Varint(flag)) => is_null = flag != 0,
                (8, Wire::Bytes(metadata)) => {
                    let metadata = self.metadata(metadata)?;
                    self.put(&mut tail, "metadata", metadata)?;
                }
                (9, Wire::Bytes(set)) => {
                    let set = self.property_set(set, depth + 1)?;
                    self.put(&mut tail, "properties", set)?;
                }
                (number @ 10..=18, wire) => value = Some((number, wire)),
                (1..=9, _) => return Err(SparkplugError::Not),
                _ => {}
            }
        }
        // Templates have members of their own, which nobody names by alias.
        let is_top = depth == 1;
        if let (true, Some(from)) = (is_top, self.from) {
            let known = alias.and_then(|alias| self.births.alias(from, alias)).cloned();
            if name.is_none() {
                name = known.as_ref().map(|known| known.name.clone().into());
            }
            let by_name = || name.as_deref().and_then(|name| self.births.datatype(from, name));
            datatype = datatype.or_else(|| known.map(|known| known.datatype).or_else(by_name));
        }
        if let (true, Some(name), Some(datatype)) = (is_top, &name, datatype) {
            self.learned.push((alias, Known { name: name.as_str().into(), datatype }));
        }
        let mut metric = Section::new();
        if let Some(name) = name {
            self.put_text(&mut metric, "name", name.as_bytes())?;
        }
        if let Some(alias) = alias {
            self.put(&mut metric, "alias", whole(alias))?;
        }
        metric.append(&mut middle);
        if let Some(datatype) = datatype {
            self.put(&mut metric, "dataType", type_name(datatype))?;
        }
        let value = match value.filter(|_| !is_null) {
            Some((number, wire)) => self.metric_value(number, wire, datatype, depth)?,
            None => Doc::Null,
        };
        self.put(&mut metric, "value", value)?;
        metric.append(&mut tail);
        Ok(Doc::Map(metric))
    }

    fn metric_value(
        &mut self,
        number: u64,
        wire: Wire<'_>,
        datatype: Option<u64>,
        depth: usize,
    ) -> Result<Doc, SparkplugError> {
        match (number, wire) {
            (16, Wire::Bytes(bytes)) => self.array(bytes, datatype),
            (17, Wire::Bytes(set)) => self.data_set(set),
            (18, Wire::Bytes(template)) => self.template(template, depth + 1),
            (10..=15, _) => self.scalar(number - 9, wire, datatype),
            _ => Err(SparkplugError::Not),
        }
    }

    /// `int`, `long`, `float`, `double`, `boolean`, `string`: the same six, in this order, wherever there is a value.
    fn scalar(&mut self, place: u64, wire: Wire<'_>, datatype: Option<u64>) -> Result<Doc, SparkplugError> {
        match (place, wire) {
            (1, Wire::Varint(number)) => Ok(integer(number & 0xFFFF_FFFF, datatype)),
            (2, Wire::Varint(number)) => Ok(integer(number, datatype)),
            (3, Wire::Fixed32(bits)) => Ok(single(f32::from_bits(bits))),
            (4, Wire::Fixed64(bits)) => Ok(float(f64::from_bits(bits))),
            (5, Wire::Varint(flag)) => Ok(Doc::Bool(flag != 0)),
            (6, Wire::Bytes(text)) => {
                self.cost(text.len(), 0)?;
                Ok(Doc::Text(text_of(text)))
            }
            _ => Err(SparkplugError::Not),
        }
    }

    fn metadata(&mut self, bytes: &[u8]) -> Result<Doc, SparkplugError> {
        let mut metadata = Section::new();
        for field in fields(bytes) {
            match field? {
                (1, Wire::Varint(flag)) => self.put(&mut metadata, "isMultiPart", Doc::Bool(flag != 0))?,
                (2, Wire::Bytes(text)) => self.put_text(&mut metadata, "contentType", text)?,
                (3, Wire::Varint(size)) => self.put(&mut metadata, "size", whole(size))?,
                (4, Wire::Varint(seq)) => self.put(&mut metadata, "seq", whole(seq))?,
                (5, Wire::Bytes(text)) => self.put_text(&mut metadata, "fileName", text)?,
                (6, Wire::Bytes(text)) => self.put_text(&mut metadata, "fileType", text)?,
                (7, Wire::Bytes(text)) => self.put_text(&mut metadata, "md5", text)?,
                (8, Wire::Bytes(text)) => self.put_text(&mut metadata, "description", text)?,
                (1..=8, _) => return Err(SparkplugError::Not),
                _ => {}
            }
        }
        Ok(Doc::Map(metadata))
    }

    /// Keys and values stand in two lists of the same length.
    fn property_set(&mut self, bytes: &[u8], depth: usize) -> Result<Doc, SparkplugError> {
        self.cost(0, depth)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for field in fields(bytes) {
            match field? {
                (1, Wire::Bytes(key)) => {
                    self.cost(key.len(), depth)?;
                    keys.push(text_of(key));
                }
                (2, Wire::Bytes(value)) => values.push(self.property(value, depth + 1)?),
                (1 | 2, _) => return Err(SparkplugError::Not),
                _ => {}
            }
        }
        if keys.len() == values.len() {
            Ok(Doc::Map(keys.into_iter().zip(values).collect()))
        } else {
            Err(SparkplugError::Not)
        }
    }

    fn property(&mut self, bytes: &[u8], depth: usize) -> Result<Doc, SparkplugError> {
        self.cost(0, depth)?;
        let (mut kind, mut is_null, mut value) = (None, false, None);
        for field in fields(bytes) {
            match field? {
                (1, Wire::Varint(number)) => kind = Some(number),
                (2, Wire::Varint(flag)) => is_null = flag != 0,
                (number @ 3..=10, wire) => value = Some((number, wire)),
                (1 | 2, _) => return Err(SparkplugError::Not),
                _ => {}
            }
        }
        let value = match value.filter(|_| !is_null) {
            None => Doc::Null,
            Some((9, Wire::Bytes(set))) => self.property_set(set, depth + 1)?,
            Some((10, Wire::Bytes(list))) => {
                let mut sets = Vec::new();
                for field in fields(list) {
                    if let (1, Wire::Bytes(set)) = field? {
                        sets.push(self.property_set(set, depth + 1)?);
                    }
                }
                Doc::List(sets)
            }
            Some((number, wire)) => self.scalar(number - 2, wire, kind)?,
        };
        self.typed(kind, value)
    }

    fn data_set(&mut self, bytes: &[u8]) -> Result<Doc, SparkplugError> {
        let (mut columns, mut types, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for field in fields(bytes) {
            match field? {
                (2, Wire::Bytes(name)) => {
                    self.cost(name.len(), 0)?;
                    columns.push(Doc::Text(text_of(name)));
                }
                (3, Wire::Varint(kind)) => types.push(kind),
                (3, Wire::Bytes(packed)) => {
                    let mut packed = Fields(packed);
                    while !packed.0.is_empty() {
                        self.cost(0, 0)?;
                        types.push(packed.varint().ok_or(SparkplugError::Not)?);
                    }
                }
                (4, Wire::Bytes(row)) => rows.push(row),
                (2..=4, _) => return Err(SparkplugError::Not),
                _ => {}
            }
        }
        let rows = rows.into_iter().map(|row| self.row(row, &types)).collect::<Result<_, _>>()?;
        let types = types.into_iter().map(type_name).collect();
        let mut set = Section::new();
        self.put(&mut set, "columns", Doc::List(columns))?;
        self.put(&mut set, "types", Doc::List(types))?;
        self.put(&mut set, "rows", Doc::List(rows))?;
        Ok(Doc::Map(set))
    }

    fn row(&mut self, bytes: &[u8], types: &[u64]) -> Result<Doc, SparkplugError> {
        self.cost(0, 0)?;
        let mut row = Vec::new();
        for field in fields(bytes) {
            let (1, Wire::Bytes(element)) = field? else { continue };
            self.cost(0, 0)?;
            let mut value = Doc::Null;
            for field in fields(element) {
                if let (number @ 1..=6, wire) = field? {
                    value = self.scalar(number, wire, types.get(row.len()).copied())?;
                }
            }
            row.push(value);
        }
        Ok(Doc::List(row))
    }

    fn template(&mut self, bytes: &[u8], depth: usize) -> Result<Doc, SparkplugError> {
        self.cost(0, depth)?;
        let (mut template, mut metrics, mut parameters) = (Section::new(), Vec::new(), Vec::new());
        for field in fields(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => self.put_text(&mut template, "version", text)?,
                (2, Wire::Bytes(metric)) => metrics.push(self.metric(metric, depth + 1)?),
                (3, Wire::Bytes(parameter)) => parameters.push(self.parameter(parameter)?),
                (4, Wire::Bytes(text)) => self.put_text(&mut template, "templateRef", text)?,
                (5, Wire::Varint(flag)) => self.put(&mut template, "isDefinition", Doc::Bool(flag != 0))?,
                (1..=5, _) => return Err(SparkplugError::Not),
                _ => {}
            }
        }
        self.put(&mut template, "metrics", Doc::List(metrics))?;
        self.put(&mut template, "parameters", Doc::List(parameters))?;
        Ok(Doc::Map(template))
    }

    fn parameter(&mut self, bytes: &[u8]) -> Result<Doc, SparkplugError> {
        let (mut parameter, mut kind, mut value) = (Section::new(), None, None);
        for field in fields(bytes) {
            match field? {
                (1, Wire::Bytes(name)) => self.put_text(&mut parameter, "name", name)?,
                (2, Wire::Varint(number)) => kind = Some(number),
                (number @ 3..=8, wire) => value = Some((number, wire)),
                (1 | 2, _) => return Err(SparkplugError::Not),
                _ => {}
            }
        }
        let value = match value {
            Some((number, wire)) => self.scalar(number - 2, wire, kind)?,
            None => Doc::Null,
        };
        let Doc::Map(mut typed) = self.typed(kind, value)? else { return Err(SparkplugError::Not) };
        parameter.append(&mut typed);
        Ok(Doc::Map(parameter))
    }

    fn typed(&mut self, kind: Option<u64>, value: Doc) -> Result<Doc, SparkplugError> {
        let mut typed = Section::new();
        if let Some(kind) = kind {
            self.put(&mut typed, "type", type_name(kind))?;
        }
        self.put(&mut typed, "value", value)?;
        Ok(Doc::Map(typed))
    }

    /// `bytes_value`: a list where the datatype is one of arrays, else base64.
    fn array(&mut self, bytes: &[u8], datatype: Option<u64>) -> Result<Doc, SparkplugError> {
        let of = datatype.unwrap_or_default();
        match of {
            22 | 26 => self.items::<1>(bytes, |chunk| integer(u8::from_le_bytes(*chunk).into(), Some(of - 21))),
            23 | 27 => self.items::<2>(bytes, |chunk| integer(u16::from_le_bytes(*chunk).into(), Some(of - 21))),
            24 | 28 => self.items::<4>(bytes, |chunk| integer(u32::from_le_bytes(*chunk).into(), Some(of - 21))),
            25 | 29 | 34 => {
                let signed = if of == 25 { 4 } else { 8 };
                self.items::<8>(bytes, |chunk| integer(u64::from_le_bytes(*chunk), Some(signed)))
            }
            30 => self.items::<4>(bytes, |chunk| single(f32::from_le_bytes(*chunk))),
            31 => self.items::<8>(bytes, |chunk| float(f64::from_le_bytes(*chunk))),
            32 => self.booleans(bytes),
            33 => {
                let texts = bytes.strip_suffix(&[0]).map(|texts| texts.split(|byte| *byte == 0));
                let mut items = Vec::new();
                for text in texts.into_iter().flatten() {
                    self.cost(text.len(), 0)?;
                    items.push(Doc::Text(text_of(text)));
                }
                Ok(Doc::List(items))
            }
            _ => {
                self.cost(bytes.len() * 4 / 3, 0)?;
                Ok(Doc::Text(BASE64_STANDARD.encode(bytes)))
            }
        }
    }

    fn items<const N: usize>(&mut self, bytes: &[u8], item: impl Fn(&[u8; N]) -> Doc) -> Result<Doc, SparkplugError> {
        let (chunks, rest) = bytes.as_chunks::<N>();
        if !rest.is_empty() {
            return Err(SparkplugError::Not);
        }
        let mut items = Vec::new();
        for chunk in chunks {
            self.cost(0, 0)?;
            items.push(item(chunk));
        }
        Ok(Doc::List(items))
    }

    /// A count of 32 bits, and the bits, the highest of each byte first.
    fn booleans(&mut self, bytes: &[u8]) -> Result<Doc, SparkplugError> {
        let (count, bits) = bytes.split_first_chunk().ok_or(SparkplugError::Not)?;
        let count = usize::try_from(u32::from_le_bytes(*count)).unwrap_or(usize::MAX);
        if count.div_ceil(8) != bits.len() {
            return Err(SparkplugError::Not);
        }
        let mut items = Vec::new();
        for at in 0..count {
            self.cost(0, 0)?;
            let byte = bits.get(at / 8).copied().unwrap_or_default();
            items.push(Doc::Bool(byte & (0x80 >> (at % 8)) != 0));
        }
        Ok(Doc::List(items))
    }

    fn put(&mut self, section: &mut Section, name: &str, value: Doc) -> Result<(), SparkplugError> {
        self.cost(0, 0)?;
        section.push((name.to_owned(), value));
        Ok(())
    }

    fn put_text(&mut self, section: &mut Section, name: &str, text: &[u8]) -> Result<(), SparkplugError> {
        self.cost(text.len(), 0)?;
        self.put(section, name, Doc::Text(text_of(text)))
    }

    fn put_bytes(&mut self, section: &mut Section, name: &str, bytes: &[u8]) -> Result<(), SparkplugError> {
        self.cost(bytes.len() * 4 / 3, 0)?;
        self.put(section, name, Doc::Text(BASE64_STANDARD.encode(bytes)))
    }

    /// One more value, with so much text, so deep.
    fn cost(&mut self, text: usize, depth: usize) -> Result<(), SparkplugError> {
        let left = self.left.checked_sub(text).zip(self.values.checked_sub(1));
        let (left, values) = left.filter(|_| depth <= DEPTH_MAX).ok_or(SparkplugError::TooLarge)?;
        (self.left, self.values) = (left, values);
        Ok(())
    }
}

fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Wire<'_>), SparkplugError>> {
    Fields(bytes).map(|field| field.map_err(|NotWire| SparkplugError::Not))
}

/// The payload within one whose `uuid` says that it is compressed; by the metric `algorithm`, which may be left out.
fn compressed(doc: &Doc) -> Result<Option<Vec<u8>>, SparkplugError> {
    let get = |doc: &Doc, name: &str| {
        let Doc::Map(fields) = doc else { return None };
        fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    let (Some(Doc::Text(uuid)), Some(Doc::Text(body))) = (get(doc, "uuid"), get(doc, "body")) else { return Ok(None) };
    if uuid != COMPRESSED {
        return Ok(None);
    }
    let Some(Doc::List(metrics)) = get(doc, "metrics") else { return Ok(None) };
    let is_algorithm = |metric: &&Doc| get(metric, "name") == Some(Doc::Text("algorithm".to_owned()));
    let algorithm = metrics.iter().find(is_algorithm).and_then(|metric| get(metric, "value"));
    let body = BASE64_STANDARD.decode(body).map_err(|_never| SparkplugError::Not)?;
    let plain = match algorithm {
        Some(Doc::Text(name)) if name.eq_ignore_ascii_case("gzip") => Coding::Gzip.unpack(&body).ok(),
        _ => miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(&body, UNPACKED_BYTES_MAX).ok(),
    };
    plain.map(Some).ok_or(SparkplugError::Not)
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn type_name(number: u64) -> Doc {
    let name = usize::try_from(number).ok().and_then(|number| TYPES.get(number));
    name.map_or_else(|| whole(number), |name| Doc::Text((*name).to_owned()))
}

fn whole(number: u64) -> Doc {
    Doc::Number(number.into())
}

/// Signed ones are in two's complement, in as many bits as their datatype has.
fn integer(number: u64, datatype: Option<u64>) -> Doc {
    let bytes = number.to_le_bytes();
    let [a, b, c, d, ..] = bytes;
    let signed: i64 = match datatype {
        Some(1) => i8::from_le_bytes([a]).into(),
        Some(2) => i16::from_le_bytes([a, b]).into(),
        Some(3) => i32::from_le_bytes([a, b, c, d]).into(),
        Some(4) => i64::from_le_bytes(bytes),
        _ => return whole(number),
    };
    Doc::Number(signed.into())
}

fn float(number: f64) -> Doc {
    Number::from_f64(number).map_or(Doc::Null, Doc::Number)
}

/// As many digits as a single has: 21.4 and not 21.399999618530273.
fn single(number: f32) -> Doc {
    number.to_string().parse().ok().and_then(Number::from_f64).map_or(Doc::Null, Doc::Number)
}
