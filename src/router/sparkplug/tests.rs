//! Payloads put together field by field.

use proptest::prelude::*;

use super::*;

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number > 0x7F {
        out.push(u8::try_from(number & 0x7F).unwrap() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap());
    out
}

/// A field that is a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field that is a text or a message.
fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint((field << 3) | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn double(field: u64, value: f64) -> Vec<u8> {
    [varint((field << 3) | 1), value.to_le_bytes().to_vec()].concat()
}

fn metric(fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(2, &fields.concat())
}

fn told(topic: &str, payload: &[Vec<u8>], births: &mut Births) -> String {
    String::from_utf8(decode(topic, &payload.concat(), births).unwrap().unwrap()).unwrap()
}

/// The value of one metric of this datatype.
fn value(datatype: u64, field: &[u8]) -> String {
    let told = told("x", &[metric(&[number(4, datatype), field.to_vec()])], &mut Births::default());
    let head = format!(r#"{{"metrics":[{{"dataType":"{}","value":"#, TYPES[usize::try_from(datatype).unwrap()]);
    told.strip_prefix(&head).and_then(|rest| rest.strip_suffix("}]}")).unwrap_or(&told).to_owned()
}

#[test]
fn values_are_of_their_datatypes() {
    let single = |value: f32| [varint((12 << 3) | 5), value.to_le_bytes().to_vec()].concat();
    for (datatype, field, expected) in [
        (1, number(10, 0xFFFF_FFFE), "-2"),
        (1, number(10, 0xFE), "-2"),
        (2, number(10, 0xFFFF_8000), "-32768"),
        (3, number(10, 0xFFFF_FFFF), "-1"),
        (4, number(11, u64::MAX), "-1"),
        (5, number(10, 255), "255"),
        (7, number(10, 0xFFFF_FFFF), "4294967295"),
        (8, number(11, u64::MAX), "18446744073709551615"),
        (9, single(21.4), "21.4"),
        (9, single(f32::NAN), "null"),
        (10, double(13, -0.5), "-0.5"),
        (11, number(14, 1), "true"),
        (12, bytes(15, "é\"".as_bytes()), r#""é\"""#),
        (13, number(11, 1_796_083_200_000), "1796083200000"),
        (17, bytes(16, b"\xFF\x00"), r#""/wA=""#),
        (22, bytes(16, b"\xFF\x01"), "[-1,1]"),
        (23, bytes(16, b"\xFF\xFF\x01\0"), "[-1,1]"),
        (27, bytes(16, b"\xFF\xFF\x01\0"), "[65535,1]"),
        (29, bytes(16, &7_u64.to_le_bytes()), "[7]"),
        (31, bytes(16, &0.25_f64.to_le_bytes()), "[0.25]"),
        (32, bytes(16, b"\x0A\0\0\0\x80\x40"), "[true,false,false,false,false,false,false,false,false,true]"),
        (33, bytes(16, b"a\0bc\0"), r#"["a","bc"]"#),
        (34, bytes(16, b""), "[]"),
        (3, [number(10, 1), number(7, 1)].concat(), "null"),
    ] {
        assert_eq!(value(datatype, &field), expected, "{datatype}");
    }
}

#[test]
fn what_a_birth_has_said_names_the_metrics_behind_it() {
    let mut births = Births::default();
    let birth = [
        number(1, 7),
        metric(&[bytes(1, b"Temp/In"), number(2, 3), number(4, 3), number(10, 1)]),
        metric(&[bytes(1, b"Speed"), number(4, 1), number(10, 1)]),
        number(3, 0),
    ];
    let data = [metric(&[number(2, 3), number(10, 0xFFFF_FFFF)]), metric(&[bytes(1, b"Speed"), number(10, 255)])];
    let unknown = r#"{"metrics":[{"alias":3,"value":4294967295},{"name":"Speed","value":255}]}"#;
    assert_eq!(told("spBv1.0/g/NDATA/n", &data, &mut births), unknown);
    let expected = r#"{"timestamp":7,"metrics":[{"name":"Temp/In","alias":3,"dataType":"Int32","value":1},{"name":"Speed","dataType":"Int8","value":1}],"seq":0}"#;
    assert_eq!(told("spBv1.0/g/NBIRTH/n", &birth, &mut births), expected);
    let known = r#"{"metrics":[{"name":"Temp/In","alias":3,"dataType":"Int32","value":-1},{"name":"Speed","dataType":"Int8","value":-1}]}"#;
    assert_eq!(told("spBv1.0/g/NDATA/n", &data, &mut births), known);
    assert_eq!(told("spBv1.0/g/NDATA/other", &data, &mut births), unknown, "another node");
    // A device's BIRTH comes on top; aliases are of the whole node, names of the device.
    let birth = [metric(&[bytes(1, b"Speed"), number(2, 4), number(4, 2)])];
    drop(told("spBv1.0/g/DBIRTH/n/d", &birth, &mut births));
    let both = [metric(&[number(2, 4)]), metric(&[number(2, 3)]), metric(&[bytes(1, b"Speed"), number(10, 255)])];
    let expected = r#"{"metrics":[{"name":"Speed","alias":4,"dataType":"Int16","value":null},{"name":"Temp/In","alias":3,"dataType":"Int32","value":null},{"name":"Speed","value":255}]}"#;
    assert_eq!(told("spBv1.0/g/DDATA/n/d", &both, &mut births), expected);
    // A node's next BIRTH begins anew.
    drop(told("spBv1.0/g/NBIRTH/n", &[number(3, 0)], &mut births));
    assert_eq!(told("spBv1.0/g/NDATA/n", &data, &mut births), unknown);
    assert_eq!((births.bytes, births.nodes.len()), ("g/n".len() + NODE_BYTES, 1));
}

#[test]
fn what_is_known_is_bounded_and_the_oldest_node_is_forgotten() {
    let mut births = Births::default();
    let names: Vec<_> =
        (0..1_000_u64).map(|n| metric(&[bytes(1, &[b'x'; 1_000]), number(2, n), number(4, 3)])).collect();
    for node in 0..20 {
        drop(told(&format!("spBv1.0/g/NBIRTH/{node}"), &names, &mut births));
        assert!(births.bytes <= KNOWN_BYTES_MAX);
        assert_eq!(births.bytes, births.nodes.values().map(|node| node.bytes).sum::<usize>());
    }
    assert!(births.nodes.len() == 15 && births.nodes.contains_key("g/19") && !births.nodes.contains_key("g/4"));
    let long = [metric(&[bytes(1, &[b'x'; NAME_BYTES_MAX + 1]), number(2, 1), number(4, 3)])];
    drop(told("spBv1.0/g/NBIRTH/19", &long, &mut births));
    assert!(births.nodes["g/19"].aliases.is_empty());
}

/// What the tables hold: names, and what they stand in.
fn held(births: &Births) -> usize {
    let of_node = |node: &Node| {
        let aliases = node.aliases.values().map(|known| known.name.len() + size_of::<(u64, Known)>()).sum::<usize>();
        let types = node.types.keys().map(|name| name.len() + size_of::<(Box<str>, u64)>()).sum::<usize>();
        aliases + types
    };
    let nodes = births.nodes.iter().map(|(name, node)| name.len() + size_of::<(Arc<str>, Node)>() + of_node(node));
    nodes.sum::<usize>() + births.by_age.len() * size_of::<(u64, Arc<str>)>()
}

#[test]
fn nodes_without_metrics_are_bounded_too_r36() {
    let empty = [number(3, 0)];
    let mut births = Births::default();
    for node in 0..100_u64 {
        drop(told(&format!("spBv1.0/g/NBIRTH/{node}{}", "x".repeat(60_000)), &empty, &mut births));
        drop(told(&format!("spBv1.0/g/DBIRTH/n/{node}{}", "x".repeat(60_000)), &empty, &mut births));
    }
    assert_eq!((births.nodes.len(), held(&births)), (0, 0), "names that long are not remembered");
    for node in 0..40_000_u64 {
        let name = if node % 2 == 0 { "x".repeat(NAME_BYTES_MAX - 10) } else { String::new() };
        drop(told(&format!("spBv1.0/g/NBIRTH/{node}{name}"), &empty, &mut births));
    }
    assert!(held(&births) <= births.bytes && births.bytes <= KNOWN_BYTES_MAX, "{} {}", held(&births), births.bytes);
    assert!(births.nodes.contains_key("g/39999") && !births.nodes.contains_key("g/1"));
    assert_eq!(births.by_age.len(), births.nodes.len());
    assert!(births.by_age.iter().all(|(born, name)| births.nodes[name].born == *born));
}

#[test]
fn an_alias_that_gets_another_name_counts_with_that_r36() {
    let mut births = Births::default();
    drop(told("spBv1.0/g/NBIRTH/n", &[metric(&[bytes(1, b"a"), number(2, 1), number(4, 3)])], &mut births));
    let before = births.bytes;
    for name in [1_000, 1_000, 1] {
        let longer = [metric(&[bytes(1, &vec![b'x'; name]), number(2, 1), number(4, 3)])];
        drop(told("spBv1.0/g/DBIRTH/n/d", &longer, &mut births));
        assert_eq!(births.bytes, before + name - 1);
    }
}

#[test]
fn sets_templates_and_properties_are_sections() {
    let property = |kind, field: Vec<u8>| bytes(2, &[number(1, kind), field].concat());
    let inner = [bytes(1, b"k"), property(12, bytes(8, b"v"))].concat();
    let set =
        [bytes(1, b"unit"), bytes(1, b"in"), property(12, bytes(8, b"C")), property(20, bytes(9, &inner))].concat();
    let told_of = |fields: &[Vec<u8>]| told("x", &[metric(fields)], &mut Births::default());
    let expected = r#"{"metrics":[{"name":"t","value":null,"properties":{"unit":{"type":"String","value":"C"},"in":{"type":"PropertySet","value":{"k":{"type":"String","value":"v"}}}}}]}"#;
    assert_eq!(told_of(&[bytes(1, b"t"), bytes(9, &set)]), expected);
    let row = bytes(4, &[bytes(1, &number(1, 0xFFFF_FFFF)), bytes(1, &bytes(6, b"x"))].concat());
    let data_set = [number(1, 2), bytes(2, b"a"), bytes(2, b"b"), number(3, 3), number(3, 12), row].concat();
    let expected = r#"{"metrics":[{"dataType":"DataSet","value":{"columns":["a","b"],"types":["Int32","String"],"rows":[[-1,"x"]]}}]}"#;
    assert_eq!(told_of(&[number(4, 16), bytes(17, &data_set)]), expected);
    let parameter = bytes(3, &[bytes(1, b"p"), number(2, 3), number(3, 5)].concat());
    let template =
        [metric(&[bytes(1, b"m"), number(4, 11), number(14, 0)]), parameter, bytes(4, b"Motor"), number(5, 0)].concat();
    let expected = r#"{"metrics":[{"dataType":"Template","value":{"templateRef":"Motor","isDefinition":false,"metrics":[{"name":"m","dataType":"Boolean","value":false}],"parameters":[{"name":"p","type":"Int32","value":5}]}}]}"#;
    assert_eq!(told_of(&[number(4, 19), bytes(18, &template)]), expected);
}

#[test]
fn a_compressed_payload_is_taken_out_and_what_is_none_is_told() {
    let inner = [metric(&[bytes(1, b"m"), number(4, 11), number(14, 1)]), number(3, 9)].concat();
    let expected = r#"{"metrics":[{"name":"m","dataType":"Boolean","value":true}],"seq":9}"#;
    let gzip = Coding::Gzip.pack(&inner).unwrap();
    let zlib = miniz_oxide::deflate::compress_to_vec_zlib(&inner, 6);
    let algorithm = metric(&[bytes(1, b"algorithm"), number(4, 12), bytes(15, b"GZIP")]);
    for (algorithm, body) in [(algorithm, gzip), (Vec::new(), zlib)] {
        let outer = [algorithm, bytes(4, COMPRESSED.as_bytes()), bytes(5, &body)];
        assert_eq!(told("x", &outer, &mut Births::default()), expected);
    }
    let mut births = Births::default();
    assert_eq!(decode("spBv1.0/STATE/host", b"{}", &mut births), Ok(None));
    assert_eq!(decode("x", b"", &mut births), Ok(None));
    for bad in [&b"{\"json\":1}"[..], b"\x12\x05a", &bytes(1, b"text"), &number(2, 1)] {
        assert_eq!(decode("x", bad, &mut births), Err(SparkplugError::Not), "{bad:?}");
    }
}

#[test]
fn what_is_too_deep_too_many_or_too_long_is_told() {
    let mut births = Births::default();
    let mut deep = bytes(1, b"m");
    for _ in 0..DEPTH_MAX {
        deep = bytes(18, &bytes(2, &deep));
    }
    let too_large = Err(SparkplugError::TooLarge);
    assert_eq!(decode("x", &metric(&[deep]), &mut births), too_large);
    assert_eq!(decode("x", &metric(&[]).repeat(VALUES_MAX / 2 + 1), &mut births), too_large);
    // Many that go by the alias of a long name.
    let name = vec![b'x'; NAME_BYTES_MAX];
    drop(told("spBv1.0/g/NBIRTH/n", &[metric(&[bytes(1, &name), number(2, 1), number(4, 3)])], &mut births));
    let many = metric(&[number(2, 1)]).repeat(16_500);
    assert_eq!(decode("spBv1.0/g/NDATA/n", &many, &mut births), too_large);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut births = Births::default();
        let _either = decode("spBv1.0/g/NBIRTH/n", &bytes, &mut births);
        let _either = decode("spBv1.0/g/DDATA/n/d", &metric(&[bytes]), &mut births);
    }
}
