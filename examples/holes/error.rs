use std::io;

pub enum Error {
    Io(io::Error),
    Parse(String),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        
    }
}
