//! What a kernel's text says of its arguments.

use crate::error::{Error, Result};
use crate::hip::emit::Source;

/// The arguments of a kernel, read from its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The buffers, in order.
    pub buffers: Vec<Buffer>,
    /// The fields of the block of scalars, which follows the buffers if there is one.
    pub info: Vec<Field>,
}

/// A buffer that a kernel takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Its element, as the text names it: `float`, `__half_8`.
    pub element: String,
    /// Size of an element, bytes.
    pub bytes: usize,
}

/// An array in the block of scalars. Its size is a multiple of 8 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// `scalars_f32`, or `static_meta` for the lengths of the buffers.
    pub name: String,
    /// Size of an element, bytes.
    pub bytes: usize,
    /// Elements, the padding included.
    pub count: usize,
}

impl Signature {
    /// Reads the signature of `source`'s entry.
    ///
    /// # Errors
    /// A text that is not CubeCL's, or a kernel that asks for the shape of a tensor.
    pub fn read(source: &Source) -> Result<Self> {
        let unreadable = |what: &str| Error::Run {
            kernel: source.name.clone(),
            reason: format!("the text is not as CubeCL writes it: {what}"),
        };
        if source.text.matches("dynamic_meta").count() > 1 {
            return Err(unreadable(
                "it asks for the shape of a tensor; pass a slice and its sizes",
            ));
        }
        let parameters = source
            .text
            .split_once(&format!(" {}(", source.entry))
            .and_then(|(_, rest)| rest.split_once(')'))
            .map(|(parameters, _)| parameters)
            .ok_or_else(|| unreadable(&format!("no function {}(..)", source.entry)))?;
        let mut buffers = Vec::new();
        for parameter in parameters.split(',').map(str::trim) {
            let element = parameter.split([' ', '*']).next().unwrap_or_default();
            if element != "info_st" {
                let bytes = size(element).ok_or_else(|| unreadable(parameter))?;
                buffers.push(Buffer {
                    element: element.to_owned(),
                    bytes,
                });
            }
        }
        let info = match source.text.split_once("struct info_st {") {
            Some((_, rest)) => rest.split_once('}').map_or(rest, |(fields, _)| fields),
            None => "",
        };
        let info = info
            .split(';')
            .map(str::trim)
            .filter(|field| !field.is_empty());
        let info = info
            .map(|text| field(text).ok_or_else(|| unreadable(text)))
            .collect::<Result<_>>()?;
        Ok(Self { buffers, info })
    }
}

/// `uint32_t scalars_u32[2]`.
fn field(text: &str) -> Option<Field> {
    let (element, rest) = text.split_once(' ')?;
    let (name, count) = rest.strip_suffix(']')?.split_once('[')?;
    Some(Field {
        name: name.to_owned(),
        bytes: size(element)?,
        count: count.parse().ok()?,
    })
}

/// Size in bytes of a type that CubeCL names: a scalar, or a vector such as `__half_8`.
fn size(element: &str) -> Option<usize> {
    let lanes = lanes(element);
    let scalar = element.rsplit_once('_').filter(|_| lanes.is_some());
    let scalar = scalar.map_or(element, |(scalar, _)| scalar);
    let bytes = match scalar {
        "bool" | "int8_t" | "uint8_t" => 1,
        "__half" | "__hip_bfloat16" | "__nv_bfloat16" | "int16_t" | "uint16_t" => 2,
        "float" | "int32_t" | "uint32_t" => 4,
        "double" | "int64_t" | "uint64_t" => 8,
        _ => return None,
    };
    Some(bytes * lanes.unwrap_or(1))
}

/// Lanes of a vector type such as `__half_8`.
fn lanes(element: &str) -> Option<usize> {
    element.rsplit_once('_')?.1.parse().ok()
}

/// The names that the text gives to the workgroup's shared memory, declared as `extern __shared__ .. char NAME[];`.
pub fn shared_memory(text: &str) -> impl Iterator<Item = &str> {
    text.split("extern __shared__ ").skip(1).filter_map(|rest| {
        let (declaration, _) = rest.split_once("[]")?;
        declaration.rsplit(' ').next()
    })
}

/// Lanes of the widest vector that the text builds by inserting lane after lane, `T const v = {w.i_0, x, w.i_2};`; 0 if none.
///
/// Clang tries to fold each such constant, and for that the one that the other lanes are from, again for each of them: a
/// chain takes a time exponential in its length, seconds for 8 lanes and no end for 16.
pub fn widest_insertion(text: &str) -> usize {
    text.lines().filter_map(inserted_lanes).max().unwrap_or(0)
}

/// Lanes of the vector that a line declares by an insertion.
fn inserted_lanes(line: &str) -> Option<usize> {
    let (before, _) = line.split_once(" = {")?;
    let (vector, _) = before
        .rsplit(';')
        .next()?
        .trim_start()
        .split_once(" const ")?;
    lanes(vector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::instruction::Target;

    fn source(text: &str) -> Source {
        Source {
            name: "test".into(),
            entry: "kernel".into(),
            text: text.into(),
            target: Target::Gfx90a,
            units: [64, 1, 1],
            shared_memory: 0,
        }
    }

    #[test]
    fn arguments_are_read_as_cubecl_writes_them() {
        let text = "struct info_st {\n    float scalars_f32[2];\nuint32_t scalars_u32[4];uint32_t static_meta[2];\n};\n\
            extern \"C\" __global__ void __launch_bounds__(64) kernel(__half_8 const* const __restrict__ v1, \
            float * const __restrict__ v2, info_st const* const __restrict__ v3) {\n\
            extern __shared__ __align__(8) char v4[];uint32_t const* const dynamic_meta_v5 = 0;";
        let signature = Signature::read(&source(text)).unwrap();
        let buffers: Vec<_> = signature
            .buffers
            .iter()
            .map(|b| (b.element.as_str(), b.bytes))
            .collect();
        assert_eq!(buffers, [("__half_8", 16), ("float", 4)]);
        let fields: Vec<_> = signature
            .info
            .iter()
            .map(|f| (f.name.as_str(), f.bytes, f.count))
            .collect();
        assert_eq!(
            fields,
            [
                ("scalars_f32", 4, 2),
                ("scalars_u32", 4, 4),
                ("static_meta", 4, 2)
            ]
        );
        assert_eq!(shared_memory(text).collect::<Vec<_>>(), ["v4"]);
    }

    #[test]
    fn insertions_of_lanes_are_told_from_constructions() {
        let inserted = "uint32_t const v1 = 2;__half_4 const v2 = {v3, v4.i_1};\n";
        let constructed = "array<float_4, 2> v7_store = {};\n  float_16 const v8 = float_16{v9};\n";
        assert_eq!(widest_insertion(&format!("{constructed}{inserted}")), 4);
        assert_eq!(widest_insertion(constructed), 0);
    }

    #[test]
    fn a_text_of_another_kind_is_an_error() {
        let error = |text: &str| Signature::read(&source(text)).unwrap_err().to_string();
        assert!(error("void other() {}").contains("no function kernel"));
        assert!(error("void kernel(what* v1) {}").contains("what* v1"));
        assert!(error("dynamic_meta_v5 = 0; x = dynamic_meta_v5[0];").contains("slice"));
    }
}
