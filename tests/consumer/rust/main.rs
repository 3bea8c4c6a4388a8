// A Rust program that calls the C interface: it checks the version, encodes an array, decodes it and reads a message. The
// declarations are what bindgen makes of orbitsplit/c_api.h, for the functions that it calls. It needs the standard library alone.
use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_void};
use std::ptr::{null, null_mut};

#[repr(C)]
struct Error {
    status: i32,
    message: [c_char; 508],
}

#[repr(C)]
struct ArrayType {
    dtype: i32,
    rank: i32,
    shape: [i64; 8],
}

// Behind pointers only.
enum Codec {}
enum Encoder {}
enum Decoder {}

#[link(name = "orbitsplit_c")]
extern "C" {
    fn orbitsplit_check_version(major: c_int, minor: c_int, error: *mut Error) -> i32;
    fn orbitsplit_codec_parse(text: *const c_char, codec: *mut *mut Codec, error: *mut Error) -> i32;
    fn orbitsplit_codec_free(codec: *mut Codec);
    fn orbitsplit_frame_bytes(codec: *const Codec, kind: *const ArrayType, bytes: *mut usize, error: *mut Error) -> i32;
    fn orbitsplit_encoder_new(
        codec: *const Codec,
        kind: *const ArrayType,
        threads: i32,
        encoder: *mut *mut Encoder,
        error: *mut Error,
    ) -> i32;
    fn orbitsplit_encoder_free(encoder: *mut Encoder);
    fn orbitsplit_encode(
        encoder: *mut Encoder,
        data: *const c_void,
        data_bytes: usize,
        frame: *mut c_void,
        capacity: usize,
        frame_bytes: *mut usize,
        error: *mut Error,
    ) -> i32;
    fn orbitsplit_decoder_new(
        codecs: *const *const Codec,
        count: usize,
        kind: *const ArrayType,
        threads: i32,
        decoder: *mut *mut Decoder,
        error: *mut Error,
    ) -> i32;
    fn orbitsplit_decoder_free(decoder: *mut Decoder);
    fn orbitsplit_decode(
        decoder: *mut Decoder,
        frame: *const c_void,
        frame_bytes: usize,
        data: *mut c_void,
        data_bytes: usize,
        error: *mut Error,
    ) -> i32;
}

const OK: i32 = 0;
const INVALID_ARGUMENT: i32 = 1;
const CORRUPT_FRAME: i32 = 2;

fn main() {
    let mut error = Error { status: OK, message: [0; 508] };
    let x: Vec<f32> = (0..192).map(|i| (i as f32).sin()).collect();
    let mut y = vec![0f32; x.len()];
    let bytes = 4 * x.len();
    let kind = ArrayType { dtype: 0, rank: 2, shape: [3, 64, 0, 0, 0, 0, 0, 0] };
    let size = unsafe {
        assert_eq!(orbitsplit_check_version(0, 1, &mut error), OK);
        let mut codec: *mut Codec = null_mut();
        let unknown = b"gzip\0".as_ptr() as *const c_char;
        assert_eq!(orbitsplit_codec_parse(unknown, &mut codec, &mut error), INVALID_ARGUMENT);
        let message = CStr::from_ptr(error.message.as_ptr()).to_str().unwrap();
        assert!(error.status == INVALID_ARGUMENT && message.starts_with("codec \"gzip\" is unknown"));

        assert_eq!(orbitsplit_codec_parse(b"int8\0".as_ptr() as *const c_char, &mut codec, &mut error), OK);
        let mut size = 0;
        assert_eq!(orbitsplit_frame_bytes(codec, &kind, &mut size, &mut error), OK);
        let mut frame = vec![0u8; size];
        let mut encoder: *mut Encoder = null_mut();
        let mut decoder: *mut Decoder = null_mut();
        assert_eq!(orbitsplit_encoder_new(codec, &kind, 1, &mut encoder, &mut error), OK);
        assert_eq!(orbitsplit_decoder_new(null(), 0, &kind, 1, &mut decoder, &mut error), OK);
        orbitsplit_codec_free(codec);
        let out = frame.as_mut_ptr() as *mut c_void;
        let data = x.as_ptr() as *const c_void;
        assert_eq!(orbitsplit_encode(encoder, data, bytes, out, frame.len(), &mut size, &mut error), OK);
        let array = y.as_mut_ptr() as *mut c_void;
        assert_eq!(orbitsplit_decode(decoder, out, size, array, bytes, &mut error), OK);
        assert_eq!(orbitsplit_decode(decoder, out, size - 1, array, bytes, &mut error), CORRUPT_FRAME);
        assert_eq!(orbitsplit_decode(decoder, out, size, array, bytes, &mut error), OK);
        orbitsplit_encoder_free(encoder);
        orbitsplit_decoder_free(decoder);
        size
    };
    let worst = x.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst < 0.005, "int8 errs by {}", worst);
    println!("{} bytes as {} in int8", bytes, size);
}
