/**
 * The JupyterLab plugin: the panel in the left sidebar, an item in the status bar, commands.
 */
import {
  ILayoutRestorer,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { IDefaultFileBrowser } from '@jupyterlab/filebrowser';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { Actions } from './actions';
import { askMount, askToken, askUnmount, attempt, copyCommand } from './dialogs';
import { PanelModel } from './model';
import { WorkspacePanel } from './panel';
import { View } from './state';
import { StatusItem } from './status';

const VERSION: string = require('../package.json').version;

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-wsfuse:plugin',
  description: 'Shows who has this server’s workspace mounted, and how that goes.',
  autoStart: true,
  optional: [
    ILayoutRestorer,
    ISettingRegistry,
    ITranslator,
    ICommandPalette,
    IStatusBar,
    IDefaultFileBrowser
  ],
  activate: (
    app: JupyterFrontEnd,
    restorer: ILayoutRestorer | null,
    registry: ISettingRegistry | null,
    translator: ITranslator | null,
    palette: ICommandPalette | null,
    statusBar: IStatusBar | null,
    browser: IDefaultFileBrowser | null
  ): void => {
    const settings = app.serviceManager.serverSettings;
    const trans = (translator ?? nullTranslator).load('jupyter_wsfuse');
    const model = new PanelModel(settings, VERSION);
    const actions = new Actions(settings);
    const open = (path: string) => {
      void attempt(trans.__('Open'), async () => {
        const folder = await app.serviceManager.contents.get(path, { content: false });
        await app.commands.execute(
          folder.type === 'directory' ? 'filebrowser:go-to-path' : 'docmanager:open',
          { path }
        );
      });
    };
    const panel = new WorkspacePanel(
      model,
      {
        actions,
        open,
        run: (what, work) => void attempt(what, work),
        askMount: () => void askMount(actions, trans),
        askUnmount: (id, mount) => void askUnmount(actions, trans, id, mount),
        copyCommand: () => copyCommand(trans),
        token: () => void askToken(actions, trans)
      },
      translator ?? nullTranslator
    );
    panel.disposed.connect(() => model.dispose());
    app.shell.add(panel, 'left', { rank: 600 });
    restorer?.add(panel, panel.id);

    const show = (view: View) => {
      panel.showView(view);
      app.shell.activateById(panel.id);
    };
    const category = trans.__('Workspace mounts');
    const commands: [string, string, () => void][] = [
      ['show-mounts', trans.__('Show Mounts of the Workspace'), () => show('mounts')],
      ['show-profile', trans.__('Show Profile of the Workspace'), () => show('profile')],
      ['show-limits', trans.__('Show Limits of the Workspace'), () => show('limits')],
      ['show-audit', trans.__('Show Audit Log of the Workspace'), () => show('audit')],
      ['mount', trans.__('Mount the Workspace…'), () => void askMount(actions, trans)],
      ['copy-command', trans.__('Copy Command to Mount Elsewhere'), () => copyCommand(trans)],
      ['new-token', trans.__('New Scoped Token…'), () => void askToken(actions, trans)]
    ];
    for (const [name, label, execute] of commands) {
      const command = `jupyter-wsfuse:${name}`;
      app.commands.addCommand(command, { label, execute });
      palette?.addItem({ command, category });
    }

    if (statusBar) {
      const item = new StatusItem(model, trans, () => show('mounts'));
      statusBar.registerStatusItem('jupyter-wsfuse:status', { item, align: 'left', rank: 200 });
      model.background = true;
    }

    if (browser) {
      model.filesChanged.connect((_, { paths, more }) => {
        const shown = browser.model.path.replace(/^[^:/]*:/, '').replace(/^\/|\/$/g, '');
        if (more || paths.includes(shown)) {
          void browser.model.refresh();
        }
      });
    }

    // Not awaited: JupyterLab's start must not depend on our settings.
    registry
      ?.load(plugin.id)
      .then(settings => {
        const apply = () => {
          model.background = !!statusBar && (settings.get('statusBar').composite as boolean);
        };
        apply();
        settings.changed.connect(apply);
        panel.disposed.connect(() => settings.changed.disconnect(apply));
      })
      .catch(reason => console.warn('jupyter-wsfuse: settings not loaded', reason));
  }
};

export default plugin;
