//! The graph: data only, as files and `lowbit.integer` have it.

use lowbit_kernels::{Error, Result};
use serde::Deserialize;

/// The version of the graph's fields that this code reads.
const VERSION: u32 = 1;

/// What an element is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// A code of -128 to 127.
    Int8,
    /// A code of 0 to 255.
    Uint8,
    /// A sum, or a bias.
    Int32,
    /// A number.
    Float32,
}

impl Dtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Int8 | Dtype::Uint8 => 1,
            Dtype::Int32 | Dtype::Float32 => 4,
        }
    }

    /// Whether elements are codes.
    pub fn is_code(self) -> bool {
        self.size() == 1
    }

    /// As numpy calls it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Int8 => "int8",
            Dtype::Uint8 => "uint8",
            Dtype::Int32 => "int32",
            Dtype::Float32 => "float32",
        }
    }
}

/// What flows between operations. Its shape is that of one sample, channels last.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    #[allow(missing_docs)]
    pub name: String,
    #[allow(missing_docs)]
    pub shape: Vec<usize>,
    #[allow(missing_docs)]
    pub dtype: Dtype,
    /// Of codes: they stand for `(code - zero_point) * scale`.
    pub scale: Option<f32>,
    #[allow(missing_docs)]
    pub zero_point: i32,
}

/// Weights, biases, tables. Their bytes are beside the graph.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    #[allow(missing_docs)]
    pub name: String,
    #[allow(missing_docs)]
    pub shape: Vec<usize>,
    #[allow(missing_docs)]
    pub dtype: Dtype,
    /// One, or one for each index of the first axis.
    pub scale: Option<Vec<f32>>,
    #[allow(missing_docs)]
    pub zero_point: i32,
    /// What a code takes in a file.
    pub nbits: u32,
}

/// The least and the largest code of an output; the dtype's where there is none.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Bounds {
    #[allow(missing_docs)]
    pub qmin: Option<i32>,
    #[allow(missing_docs)]
    pub qmax: Option<i32>,
}

/// One step. Strings are the names of tensors and constants.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[allow(missing_docs)] // as the classes of lowbit.integer, which say it all
pub enum Operation {
    Conv2d {
        input: String,
        weight: String,
        bias: Option<String>,
        output: String,
        stride: [usize; 2],
        padding: [[usize; 2]; 2],
        dilation: [usize; 2],
        groups: usize,
        requantize: String,
        #[serde(flatten)]
        bounds: Bounds,
    },
    FullyConnected {
        input: String,
        weight: String,
        bias: Option<String>,
        output: String,
        requantize: String,
        #[serde(flatten)]
        bounds: Bounds,
    },
    Add {
        a: String,
        b: String,
        output: String,
        requantize: String,
        #[serde(flatten)]
        bounds: Bounds,
    },
    Multiply {
        a: String,
        b: String,
        output: String,
        requantize: String,
        #[serde(flatten)]
        bounds: Bounds,
    },
    Concatenate {
        parts: Vec<String>,
        output: String,
        axis: usize,
    },
    #[serde(rename = "average_pool2d")]
    AveragePool2d {
        input: String,
        output: String,
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [[usize; 2]; 2],
        #[serde(flatten)]
        bounds: Bounds,
    },
    #[serde(rename = "max_pool2d")]
    MaxPool2d {
        input: String,
        output: String,
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [[usize; 2]; 2],
        #[serde(flatten)]
        bounds: Bounds,
    },
    Softmax {
        input: String,
        output: String,
    },
    Table {
        input: String,
        table: String,
        output: String,
    },
    Reshape {
        input: String,
        output: String,
    },
    Pad {
        input: String,
        output: String,
        padding: Vec<[usize; 2]>,
    },
    Slice {
        input: String,
        output: String,
        begin: Vec<usize>,
        step: Vec<usize>,
    },
    Quantize {
        input: String,
        output: String,
    },
    Dequantize {
        input: String,
        output: String,
    },
}

impl Operation {
    /// Its name in files and reports.
    pub fn kind(&self) -> &'static str {
        match self {
            Operation::Conv2d { .. } => "conv2d",
            Operation::FullyConnected { .. } => "fully_connected",
            Operation::Add { .. } => "add",
            Operation::Multiply { .. } => "multiply",
            Operation::Concatenate { .. } => "concatenate",
            Operation::AveragePool2d { .. } => "average_pool2d",
            Operation::MaxPool2d { .. } => "max_pool2d",
            Operation::Softmax { .. } => "softmax",
            Operation::Table { .. } => "table",
            Operation::Reshape { .. } => "reshape",
            Operation::Pad { .. } => "pad",
            Operation::Slice { .. } => "slice",
            Operation::Quantize { .. } => "quantize",
            Operation::Dequantize { .. } => "dequantize",
        }
    }

    /// The tensors that it reads.
    pub fn inputs(&self) -> Vec<&str> {
        match self {
            Operation::Add { a, b, .. } | Operation::Multiply { a, b, .. } => vec![a, b],
            Operation::Concatenate { parts, .. } => parts.iter().map(|part| &part[..]).collect(),
            Operation::Conv2d { input, .. }
            | Operation::FullyConnected { input, .. }
            | Operation::AveragePool2d { input, .. }
            | Operation::MaxPool2d { input, .. }
            | Operation::Softmax { input, .. }
            | Operation::Table { input, .. }
            | Operation::Reshape { input, .. }
            | Operation::Pad { input, .. }
            | Operation::Slice { input, .. }
            | Operation::Quantize { input, .. }
            | Operation::Dequantize { input, .. } => vec![input],
        }
    }

    /// The tensor that it writes.
    pub fn output(&self) -> &str {
        match self {
            Operation::Conv2d { output, .. }
            | Operation::FullyConnected { output, .. }
            | Operation::Add { output, .. }
            | Operation::Multiply { output, .. }
            | Operation::Concatenate { output, .. }
            | Operation::AveragePool2d { output, .. }
            | Operation::MaxPool2d { output, .. }
            | Operation::Softmax { output, .. }
            | Operation::Table { output, .. }
            | Operation::Reshape { output, .. }
            | Operation::Pad { output, .. }
            | Operation::Slice { output, .. }
            | Operation::Quantize { output, .. }
            | Operation::Dequantize { output, .. } => output,
        }
    }
}

/// What lives from one sample to the next: `read` is what the sample before wrote to `write`, and 0 for
/// the first.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// A tensor that no operation writes.
    pub read: String,
    /// A tensor of the same shape and codes.
    pub write: String,
}

/// An integer network: operations in the order they run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    version: u32,
    #[allow(missing_docs)]
    pub tensors: Vec<Tensor>,
    #[allow(missing_docs)]
    pub constants: Vec<Constant>,
    #[allow(missing_docs)]
    pub operations: Vec<Operation>,
    /// Names of tensors.
    pub inputs: Vec<String>,
    /// Names of tensors.
    pub outputs: Vec<String>,
    /// What lives from one sample to the next: such a network runs as a stream.
    #[serde(default)]
    pub states: Vec<State>,
}

impl Graph {
    /// Reads and checks a graph.
    ///
    /// # Errors
    /// [`Error::Value`] naming what does not fit, and what was expected.
    pub fn from_json(text: &str) -> Result<Graph> {
        let graph: Graph = serde_json::from_str(text).map_err(|error| Error::Value(format!("graph: {error}")))?;
        if graph.version != VERSION {
            return Err(Error::Value(format!("graph: expected version {VERSION}, got {}", graph.version)));
        }
        graph.check()?;
        Ok(graph)
    }
}
