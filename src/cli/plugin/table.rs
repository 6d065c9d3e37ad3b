//! A table as kubectl prints them: columns of their own width, three spaces between them, no lines.

use crate::cli::terminal::Palette;

/// How a cell stands out on a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Like everything else.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Notice,
    /// Refused or broken.
    Bad,
}

impl Tone {
    /// The text in this tone.
    pub(crate) fn paint(self, palette: Palette, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Good => palette.good(text),
            Self::Notice => palette.notice(text),
            Self::Bad => palette.bad(text),
        }
    }
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Its text.
    pub(crate) text: String,
    /// How it stands out.
    pub(crate) tone: Tone,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// The table with its head, every line ended. Colours never change the width of a column.
pub(crate) fn render(head: &[&str], rows: &[Vec<Cell>], palette: Palette) -> String {
    let mut widths: Vec<usize> = head.iter().map(|title| title.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.chars().count());
        }
    }
    let mut text = String::new();
    let titles: Vec<Cell> = head.iter().map(|title| Cell::from(*title)).collect();
    for (number, row) in std::iter::once(&titles).chain(rows).enumerate() {
        let mut line = String::new();
        let last = row.len().saturating_sub(1);
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let painted =
                if number == 0 { palette.bold(&cell.text) } else { cell.tone.paint(palette, &cell.text) };
            line.push_str(&painted);
            if column < last {
                let padding = width.saturating_sub(cell.text.chars().count()) + 3;
                line.push_str(&" ".repeat(padding));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Cell>> {
        let good = Cell { text: "Programmed".to_owned(), tone: Tone::Good };
        vec![vec!["203.0.113.7:25/tcp".into(), good, "5".into()], vec!["é".into(), "Taken".into(), "".into()]]
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let plain = render(&["EXTERNAL", "STATE", "AGE"], &rows(), Palette { is_colourful: false });
        assert_eq!(
            plain,
            "EXTERNAL             STATE        AGE\n\
             203.0.113.7:25/tcp   Programmed   5\n\
             é                    Taken\n"
        );
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let coloured = render(&["EXTERNAL", "STATE", "AGE"], &rows(), Palette { is_colourful: true });
        assert!(coloured.contains("\u{1b}[1;32mProgrammed\u{1b}[0m   5"), "{coloured:?}");
        let plain = render(&["EXTERNAL", "STATE", "AGE"], &rows(), Palette { is_colourful: false });
        let mut stripped = coloured;
        for style in ["\u{1b}[1m", "\u{1b}[1;32m", "\u{1b}[0m"] {
            stripped = stripped.replace(style, "");
        }
        let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        assert_eq!(trimmed(&stripped), trimmed(&plain));
    }
}
